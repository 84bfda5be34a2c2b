package dnssec

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// ParseTrustPoint reads the state of a trust point as Text writes it, which is unbound's form of auto-trust-anchor-file, or plain DS and DNSKEY records of
// one zone to begin with. Errors begin with file:line.
func ParseTrustPoint(text []byte, file string) (*TrustPoint, error) {
	p := new(TrustPoint)
	for i, line := range strings.Split(string(text), "\n") {
		record, comment, _ := strings.Cut(line, ";")
		var err error
		switch {
		case strings.TrimSpace(record) != "":
			err = p.record(strings.TrimSpace(record), comment)
		case strings.HasPrefix(strings.TrimSpace(line), ";;"):
			err = p.note(strings.TrimPrefix(strings.TrimSpace(line), ";;"))
		}
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", file, i+1, err)
		}
	}
	if len(p.Keys)+len(p.DS) == 0 {
		return nil, fmt.Errorf("%s:1: no DS or DNSKEY record", file)
	}
	return p, nil
}

// note reads a line about the trust point: name: value.
func (p *TrustPoint) note(text string) error {
	name, value, _ := strings.Cut(text, ":")
	value, _, _ = strings.Cut(value, ";")
	value = strings.TrimSpace(value)
	times := map[string]*time.Time{"last_queried": &p.LastQueried, "last_success": &p.LastSuccess, "next_probe_time": &p.Next}
	spans := map[string]*time.Duration{"query_interval": &p.Interval, "retry_time": &p.Retry}
	n, err := strconv.ParseInt(value, 10, 64)
	if times[name] == nil && spans[name] == nil && name != "query_failed" {
		return nil // id, REVOKED, and what a later version may say
	}
	if err != nil || n < 0 || n > 1<<40 {
		return fmt.Errorf("%s is %.40q, want seconds", name, value)
	}
	switch {
	case times[name] != nil && n > 0:
		*times[name] = time.Unix(n, 0)
	case spans[name] != nil:
		*spans[name] = min(time.Duration(n)*time.Second, 15*24*time.Hour)
	case name == "query_failed":
		p.Failed = int(min(n, 1<<20))
	}
	return nil
}

// record reads a DNSKEY with its state, or a DS.
func (p *TrustPoint) record(text, comment string) error {
	rr, err := dns.NewRR(text)
	if err != nil || rr == nil {
		return fmt.Errorf("no record: %w", errors.Join(err))
	}
	name := dns.CanonicalName(rr.Header().Name)
	if p.Zone != "" && p.Zone != name {
		return fmt.Errorf("a record of %s among those of %s", name, p.Zone)
	}
	if len(p.Keys)+len(p.DS) == maxRolling {
		return fmt.Errorf("more than %d records", maxRolling)
	}
	p.Zone = name
	switch rr := rr.(type) {
	case *dns.DS:
		p.DS = append(p.DS, rr)
	case *dns.DNSKEY:
		k := RollingKey{Key: rr}
		for _, word := range strings.Split(comment, ";;") {
			if err := k.note(strings.Trim(word, "; \t\r")); err != nil {
				return err
			}
		}
		if rr.Flags&dns.REVOKE != 0 && k.State != KeyRevoked || rr.Protocol != 3 || rr.Flags&dns.ZONE == 0 || rr.PublicKey == "" {
			return fmt.Errorf("key %d of %s is none to trust", rr.KeyTag(), name)
		}
		p.Keys = append(p.Keys, k)
	case *dns.RRSIG: // the answer of a server, kept as a file
	default:
		return fmt.Errorf("%s is no trust anchor: want DS or DNSKEY", typeName(rr.Header().Rrtype))
	}
	return nil
}

// note reads a word about a key: name=value.
func (k *RollingKey) note(text string) error {
	name, value, ok := strings.Cut(text, "=")
	if !ok || name != "state" && name != "count" && name != "lastchange" {
		return nil
	}
	value, _, _ = strings.Cut(value, " ")
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil || n < 0 || n > 1<<40 || name == "state" && n > int64(KeyRevoked) {
		return fmt.Errorf("%s is %.40q", name, value)
	}
	switch name {
	case "state":
		k.State = KeyState(n)
	case "count":
		k.Seen = int(min(n, 1<<20))
	case "lastchange":
		if n > 0 {
			k.Changed = time.Unix(n, 0)
		}
	}
	return nil
}

// Text is the state as a file: unbound reads it, too.
func (p *TrustPoint) Text() []byte {
	var b bytes.Buffer
	b.WriteString("; autotrust trust anchor file\n")
	if p.Revoked() {
		b.WriteString(";;REVOKED\n; The zone has revoked all its keys: it is as if it had no trust anchor.\n; To begin anew, put valid DNSKEY or DS records here.\n")
	}
	at := func(t time.Time) string {
		if t.IsZero() {
			return "0"
		}
		return fmt.Sprintf("%d ;;%s", t.Unix(), t.UTC().Format(time.ANSIC))
	}
	fmt.Fprintf(&b, ";;id: %s 1\n;;last_queried: %s\n;;last_success: %s\n;;next_probe_time: %s\n", p.Zone, at(p.LastQueried), at(p.LastSuccess), at(p.Next))
	fmt.Fprintf(&b, ";;query_failed: %d\n;;query_interval: %d\n;;retry_time: %d\n", p.Failed, p.Interval/time.Second, p.Retry/time.Second)
	for _, ds := range p.DS {
		fmt.Fprintln(&b, ds)
	}
	for _, k := range p.Keys {
		fmt.Fprintf(&b, "%s ;{id = %d} ;;state=%d [%s] ;;count=%d ;;lastchange=%s\n", k.Key, k.Key.KeyTag(), k.State, k.State, k.Seen, at(k.Changed))
	}
	return b.Bytes()
}

// SaveFile returns a function that replaces the file at path with a text, as [ReplaceFile] does.
func SaveFile(path string, mode fs.FileMode) func(text []byte) error {
	return func(text []byte) error {
		return ReplaceFile(path, mode, func(w io.Writer) error { _, err := w.Write(text); return err })
	}
}

// ReplaceFile replaces the file at path in one step with what write writes: after a crash at any time, or an error, there is the old one or the new one, and
// whole. The directory must be ours to write.
func ReplaceFile(path string, mode fs.FileMode, write func(io.Writer) error) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if err = errors.Join(write(f), f.Sync(), f.Chmod(mode), f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
