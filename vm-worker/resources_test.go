// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"testing"

	"bulkhead/bus"
)

func TestLimitsAreMerged(t *testing.T) {
	t.Parallel()
	const old = `{"memory":{"limit":100,"swap":150},"cpu":{"shares":512,"quota":50000,"period":100000,"cpus":"0"},"pids":{"limit":10},` +
		`"hugepageLimits":[{"pageSize":"2MB","limit":4}],"unified":{"memory.high":"90"}}`
	for _, c := range []struct{ name, old, patch, want string }{
		{"nothing", old, `{}`, old},
		{"zeros", old, `{"memory":{"limit":0,"swap":0},"cpu":{"shares":0,"quota":0,"period":0,"cpus":""},"pids":{"limit":0},"hugepageLimits":[{"pageSize":"2MB","limit":0}]}`, old},
		{"one of each", `{}`, `{"memory":{"limit":5},"cpu":{"idle":0,"burst":0},"pids":{"limit":3}}`, `{"memory":{"limit":5},"cpu":{"burst":0,"idle":0},"pids":{"limit":3}}`},
		{"what may be swapped stays", `{"memory":{"limit":100,"swap":150}}`, `{"memory":{"limit":200}}`, `{"memory":{"limit":200,"swap":250}}`},
		{"no limit", `{"memory":{"limit":100,"swap":150}}`, `{"memory":{"limit":-1}}`, `{"memory":{"limit":-1,"swap":-1}}`},
		{"device rules", `{}`, `{"devices":[{"allow":false,"access":"rwm"}]}`, `{}`},
		{"huge pages", `{"hugepageLimits":[{"pageSize":"2MB","limit":4}]}`, `{"hugepageLimits":[{"pageSize":"2MB","limit":8}]}`, `{"hugepageLimits":[{"pageSize":"2MB","limit":8}]}`},
		{"unified", `{"unified":{"a.b":"1"}}`, `{"unified":{"a.c":"2"}}`, `{"unified":{"a.b":"1","a.c":"2"}}`},
		{
			"weight", `{"blockIO":{"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1}]}}`, `{"blockIO":{"weight":300}}`,
			`{"blockIO":{"weight":300,"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1}]}}`,
		},
	} {
		got, err := mergedText(t, c.old, c.patch)
		if err != nil || got != c.want {
			t.Errorf("%s: %s, %v, want %s", c.name, got, err, c.want)
		}
	}
	if _, err := mergedText(t, `{"memory":{"limit":100,"swap":150}}`, `{"memory":{"limit":200,"swap":150}}`); bus.ReasonOf(err) != bus.InvalidArgument {
		t.Errorf("less swap than memory: %v", err)
	}
}

func mergedText(t *testing.T, old, patch string) (string, error) {
	t.Helper()
	was, err := parseResources(old)
	if err != nil {
		t.Fatal(err)
	}
	asked, err := parseResources(patch)
	if err != nil {
		t.Fatal(err)
	}
	next, err := merged(was, asked)
	if err != nil {
		return "", err
	}
	return resourcesText(next)
}

// What an update set and a failure takes back must be written out: a zero would
// leave it as it is.
func TestTakingALimitBackSaysSo(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ target, from, want string }{
		{`{}`, `{"memory":{"limit":5,"swap":5},"cpu":{"shares":2,"quota":3,"period":4,"burst":5,"idle":1},"pids":{"limit":6}}`, `{"memory":{"limit":-1,"swap":-1},"cpu":{"shares":1024,"quota":-1,"burst":0,"period":100000,"idle":0},"pids":{"limit":-1}}`},
		{`{"memory":{"limit":4},"pids":{"limit":2}}`, `{"memory":{"limit":5},"pids":{"limit":6}}`, `{"memory":{"limit":4},"pids":{"limit":2}}`},
		{
			`{"unified":{"memory.low":"1"}}`, `{"unified":{"memory.low":"2","memory.high":"3","cpu.max":"4 5","cpu.weight":"6","memory.oom.group":"1","io.max":"8:0 rbps=7"}}`,
			`{"unified":{"cpu.max":"max","cpu.weight":"100","memory.high":"max","memory.low":"1","memory.oom.group":"0"}}`,
		},
		{`{"memory":{"limit":4},"pids":{"limit":2}}`, `{"memory":{"limit":4},"pids":{"limit":2},"unified":{"memory.max":"3","pids.max":"1"}}`, `{"memory":{"limit":4},"pids":{"limit":2}}`},
		{`{}`, `{"hugepageLimits":[{"pageSize":"2MB","limit":8}]}`, `{"hugepageLimits":[{"pageSize":"2MB","limit":18446744073709551615}]}`},
	} {
		target, err := parseResources(c.target)
		if err != nil {
			t.Fatal(err)
		}
		from, err := parseResources(c.from)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := resourcesText(explicit(target, from)); err != nil || got != c.want {
			t.Errorf("back to %s gives %s, %v, want %s", c.target, got, err, c.want)
		}
	}
}
