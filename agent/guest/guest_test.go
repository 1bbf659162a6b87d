// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"os"
	"path/filepath"
	"testing"
)

func TestEveryControllerIsDelegated(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"cpuset cpu io memory pids\n": "+cpuset +cpu +io +memory +pids",
		"\n":                          "",
	} {
		if got := delegation(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestValuesAreFoundOnTheCommandLine(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"quiet lsm=abc panic=-1\n": "abc",
		"lsm=a=b":                  "a=b",
		"xlsm=no":                  "",
		"lsm=":                     "",
		"lsm":                      "",
	} {
		if got, ok := commandLineValue(line, "lsm"); got != want || ok != (want != "") {
			t.Errorf("%q: got %q, %v", line, got, ok)
		}
	}
}

func TestPortIsFoundByItsName(t *testing.T) {
	t.Parallel()
	class := t.TempDir()
	for port, name := range map[string]string{"vport0p1": "", "vport0p2": "bulkhead.ctl\n", "vport0p3": "bulkhead.io\n"} {
		if err := os.Mkdir(filepath.Join(class, port), 0o755); err != nil {
			t.Fatal(err)
		}
		// A port without a name yet has no file.
		if name == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(class, port, "name"), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{"bulkhead.ctl": "/dev/vport0p2", "bulkhead.io": "/dev/vport0p3", "other": ""} {
		if got, err := findDevice(class, "name", name); err != nil || got != want {
			t.Errorf("%s: got %q, %v; want %q", name, got, err, want)
		}
	}
	if got, err := findDevice(filepath.Join(class, "missing"), "name", "x"); got != "" || err != nil {
		t.Errorf("a kernel without ports: %q, %v", got, err)
	}
}

func TestEntropyIsBounded(t *testing.T) {
	t.Parallel()
	for _, seed := range [][]byte{nil, make([]byte, maxEntropy+1)} {
		if err := AddEntropy(seed); err == nil {
			t.Errorf("%d bytes were accepted", len(seed))
		}
	}
}
