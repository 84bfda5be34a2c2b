package lab

import "testing"

func TestCheckName(t *testing.T) {
	for name, ok := range map[string]bool{
		"alice": true, "a-1": true, "fifteen-letters": true,
		"": false, "sixteen--letters": false, "Alice": false, "a.b": false, "a/b": false, "ä": false,
	} {
		if err := checkName("host", name); (err == nil) != ok {
			t.Errorf("%q: got %v", name, err)
		}
	}
}

func TestCounts(t *testing.T) {
	var c Counts
	if c.String() != "nothing" {
		t.Errorf("empty: got %q", c)
	}
	c.add(ClassESP, 100)
	c.add(ClassESPUDP, 50)
	c.add(ClassClear, 60)
	c = c.plus(c)
	if c.ESP() != 4 || c.Clear() != 2 || c[ClassESP] != (Count{2, 200}) {
		t.Errorf("got %v", c)
	}
	if want := "esp 2 (200 bytes), esp-in-udp 2 (100 bytes), clear 2 (120 bytes)"; c.String() != want {
		t.Errorf("got %q, want %q", c, want)
	}
}
