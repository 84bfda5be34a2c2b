package config

import (
	"reflect"
	"slices"
	"testing"
)

func TestNeedRestart(t *testing.T) {
	a := Default()
	b := Default()
	b.Identify, b.Policy[0].AcceptAnonymous = "all", false
	if keys := a.NeedRestart(b); len(keys) != 0 {
		t.Errorf("got %v for what a reload changes", keys)
	}
	b.Name, b.IKELifetime, b.DNS.Upstream = "alice.example", 1, upstreams("192.0.2.53")
	if keys := a.NeedRestart(b); !slices.Equal(keys, []string{"name", "ike-lifetime", "dns.upstream"}) {
		t.Errorf("got %v", keys)
	}
}

// Every field of the configuration goes by the name of its key; pins are not in the file.
func TestKeyNames(t *testing.T) {
	var check func(table string, of reflect.Type)
	check = func(table string, of reflect.Type) {
		for i := range of.NumField() {
			f := of.Field(i)
			key := table + keyName(f.Name)
			if f.Type.Kind() == reflect.Struct {
				check(key+".", f.Type)
			} else if settings[key] == nil && arrays[key] == nil && key != "pins" {
				t.Errorf("%s: there is no key %s", f.Name, key)
			}
		}
	}
	check("", reflect.TypeFor[Config]())
}
