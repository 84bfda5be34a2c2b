package fair

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fill takes what each user can have, in turn.
func fill(p *Pool, users ...string) (got []int) {
	got = make([]int, len(users))
	for more := true; more; {
		more = false
		for i, u := range users {
			if p.Try(u) {
				got[i]++
				more = true
			}
		}
	}
	return got
}

func TestShares(t *testing.T) {
	for _, tt := range []struct {
		users []string
		want  string
	}{
		{[]string{""}, "[50]"}, {[]string{"a", "b"}, "[34 33]"}, {[]string{"a", "b", "c"}, "[25 25 25]"},
	} {
		p := New(100)
		if got := fmt.Sprint(fill(p, tt.users...)); got != tt.want {
			t.Errorf("%q: %s, want %s", tt.users, got, tt.want)
		}
		if !p.Try("late") {
			t.Errorf("%q: no place for another", tt.users)
		}
	}
}

// Who has taken all that he may does not keep others waiting, and gets what he gives back.
func TestPlacesComeBack(t *testing.T) {
	p := New(10)
	fill(p, "a")
	p.Give("a")
	if p.Used() != 4 || !p.Try("b") || !p.Try("a") || p.Try("a") || p.Used() != 6 {
		t.Errorf("%d used", p.Used())
	}
	for range 5 {
		p.Give("a")
	}
	p.Give("b")
	if p.Used() != 0 || len(p.held) != 0 {
		t.Errorf("%d used, %v", p.Used(), p.held)
	}
}

// Of those who wait each user has his turn, however many wait of another's; who has left gets nothing.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(4)
		fill(p, "a", "b", "c", "d")
		var order []string
		wait := func(user string, d time.Duration) {
			go func() {
				ctx, cancel := context.WithTimeout(t.Context(), d)
				defer cancel()
				if err := p.Take(ctx, user); err == nil {
					order = append(order, user)
				} else if !errors.Is(err, context.DeadlineExceeded) {
					t.Error(err)
				}
			}()
			synctest.Wait()
		}
		for range 3 {
			wait("a", time.Minute)
		}
		wait("gone", time.Second)
		wait("b", time.Minute)
		time.Sleep(2 * time.Second)
		for _, u := range []string{"a", "b", "c", "a", "b", "a"} {
			p.Give(u)
			synctest.Wait()
		}
		if got := fmt.Sprint(order); got != "[a b a a]" {
			t.Errorf("turns: %s", got)
		}
		if len(p.turns) != 0 || len(p.waiting) != 0 {
			t.Errorf("%v still wait", p.turns)
		}
	})
}

// Whatever happens, no place is lost and none is made.
func TestNothingIsLost(t *testing.T) {
	p := New(20)
	var wg sync.WaitGroup
	for i := range 60 {
		wg.Go(func() {
			user := fmt.Sprint(i % 3)
			for range 200 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.IntN(200))*time.Microsecond)
				if p.Take(ctx, user) == nil {
					time.Sleep(time.Microsecond)
					p.Give(user)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if p.Used() != 0 || len(p.held)+len(p.waiting)+len(p.turns) != 0 {
		t.Errorf("%d used, held %v, waiting %v", p.Used(), p.held, p.turns)
	}
}
