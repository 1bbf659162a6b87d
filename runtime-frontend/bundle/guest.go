// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// settled are properties whose value was found to ask for nothing of a guest
// although it is not empty. They are taken out of what the guest gets, which refuses what it cannot do.
var settled = []struct {
	path  string
	holds func(*specs.Spec) bool
}{
	{"process.apparmorProfile", func(s *specs.Spec) bool { return s.Process != nil && s.Process.ApparmorProfile != "" }},
	{"linux.resources.memory.swappiness", func(s *specs.Spec) bool {
		return s.Linux != nil && s.Linux.Resources != nil && s.Linux.Resources.Memory != nil && s.Linux.Resources.Memory.Swappiness != nil
	}},
}

// forGuest is the configuration as the guest shall carry it out: the text as
// written, but for settled properties. Call it after Check.
func forGuest(text []byte, spec *specs.Spec) ([]byte, error) {
	for _, property := range settled {
		if !property.holds(spec) {
			continue
		}
		var err error
		if text, err = without(text, strings.Split(property.path, ".")); err != nil {
			return nil, fmt.Errorf("%s: removing %s: %w", ConfigName, property.path, err)
		}
	}
	return text, nil
}

// without removes one property from a JSON object, and leaves the text of all
// others as it is, also of those that we do not know.
func without(text []byte, path []string) ([]byte, error) {
	var object map[string]json.RawMessage
	if err := json.Unmarshal(text, &object); err != nil {
		return nil, err
	}
	// encoding/json takes names in any case, and the guest's decoder does too.
	for name, value := range object {
		if !strings.EqualFold(name, path[0]) {
			continue
		}
		if len(path) == 1 {
			delete(object, name)
			continue
		}
		inner, err := without(value, path[1:])
		if err != nil {
			return nil, err
		}
		object[name] = inner
	}
	return json.Marshal(object)
}

// ProcessForGuest checks the process of an exec and takes out what asks for
// nothing.
func ProcessForGuest(p *specs.Process, opts Options) (*specs.Process, error) {
	if err := CheckProcess(p, opts); err != nil {
		return nil, err
	}
	guest := *p
	guest.ApparmorProfile = ""
	return &guest, nil
}
