// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"reflect"
	"sort"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// explain turns the parser's errors into sentences with a line and, for a key
// that is no option, the options there are.
func explain(err error) error {
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) {
		var all []error
		for _, e := range strict.Errors {
			line, _ := e.Position()
			all = append(all, unknownKey(e.Key(), line))
		}
		return errors.Join(all...)
	}
	var decode *toml.DecodeError
	if errors.As(err, &decode) {
		line, column := decode.Position()
		if key := strings.Join(decode.Key(), "."); key != "" {
			return fmt.Errorf("line %d: option %s: %s", line, key, strings.TrimPrefix(decode.Error(), "toml: "))
		}
		return fmt.Errorf("line %d, column %d: %s", line, column, strings.TrimPrefix(decode.Error(), "toml: "))
	}
	return err
}

func unknownKey(key toml.Key, line int) error {
	section := ""
	if len(key) > 1 {
		section = key[0]
	}
	known := options(section)
	switch {
	case known == nil:
		return fmt.Errorf("line %d: there is no section [%s]; the sections are %s", line, section, strings.Join(options(""), ", "))
	case section == "":
		return fmt.Errorf("line %d: there is no section or top-level option %q; the sections are %s", line, strings.Join(key, "."), strings.Join(known, ", "))
	}
	return fmt.Errorf("line %d: [%s] has no option %q; it knows %s", line, section, strings.Join(key[1:], "."), strings.Join(known, ", "))
}

// options lists what a section may hold, or the sections for "".
func options(section string) []string {
	t := reflect.TypeFor[Config]()
	if section != "" {
		field, ok := fieldOf(t, section)
		if !ok {
			return nil
		}
		t = field.Type
	}
	var names []string
	for i := range t.NumField() {
		names = append(names, t.Field(i).Tag.Get("toml"))
	}
	sort.Strings(names)
	return names
}

func fieldOf(t reflect.Type, name string) (reflect.StructField, bool) {
	for i := range t.NumField() {
		if t.Field(i).Tag.Get("toml") == name {
			return t.Field(i), true
		}
	}
	return reflect.StructField{}, false
}
