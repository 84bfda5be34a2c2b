package config

import (
	"reflect"
	"strings"
	"unicode"
)

// NeedRestart lists the keys in which another configuration differs that a running daemon cannot change. The rules, pins,
// and who may learn our name, it can.
func (c *Config) NeedRestart(other *Config) []string {
	return differences("", reflect.ValueOf(*c), reflect.ValueOf(*other))
}

func differences(table string, a, b reflect.Value) (keys []string) {
	for i := range a.NumField() {
		f := a.Type().Field(i)
		key := table + keyName(f.Name)
		switch {
		case key == "policy", key == "identify", key == "pins":
		case f.Type.Kind() == reflect.Struct:
			keys = append(keys, differences(key+".", a.Field(i), b.Field(i))...)
		case !reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()):
			keys = append(keys, key)
		}
	}
	return keys
}

// keyName is the key of a field: TrustAnchors is trust-anchors, IKELifetime is ike-lifetime.
func keyName(field string) string {
	var key strings.Builder
	for i, r := range field {
		if i > 0 && unicode.IsUpper(r) {
			next := rune(0)
			if i+1 < len(field) {
				next = rune(field[i+1])
			}
			if unicode.IsLower(rune(field[i-1])) || unicode.IsLower(next) {
				key.WriteByte('-')
			}
		}
		key.WriteRune(unicode.ToLower(r))
	}
	return key.String()
}
