// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"os"
	"path/filepath"
	"testing"
)

// TestUpdatePassesWhatCallersSend: the texts are those of dockerd 20.10, of
// containerd's CRI plugin, and of runc's own documentation.
func TestUpdatePassesWhatCallersSend(t *testing.T) {
	h := newHost(t)
	h.created("c1", nil)
	file := filepath.Join(t.TempDir(), "resources.json")
	for _, c := range []struct {
		name, stdin string
		args        []string
		want        string
	}{
		{
			"docker", `{"memory":{"limit":67108864,"reservation":0,"swap":134217728,"kernel":0},"cpu":{"shares":0,"quota":50000,"period":100000},"blockIO":{"weight":0}}`,
			[]string{"--resources", "-"},
			`{"memory":{"limit":67108864,"reservation":0,"swap":134217728},"cpu":{"shares":0,"quota":50000,"period":100000},"blockIO":{"weight":0}}`,
		},
		{
			"CRI", `{"devices":[{"allow":false,"access":"rwm"}],"memory":{"limit":67108864},"cpu":{}}`, []string{"--resources=-"},
			`{"memory":{"limit":67108864},"cpu":{}}`,
		},
		{"a file", `{"pids":{"limit":-1}}`, []string{"-r", file}, `{"pids":{"limit":-1}}`},
		{"nothing", ``, nil, `{}`},
		{
			"flags", ``,
			[]string{
				"--memory", "64m", "--memory-swap=-1", "--memory-reservation", "1048576", "--cpu-shares", "512", "--cpu-quota", "-1", "--cpu-period", "50000",
				"--cpu-burst", "10000", "--cpu-idle", "0", "--cpuset-cpus", "0-1", "--cpuset-mems", "0", "--pids-limit", "20", "--kernel-memory", "",
			},
			`{"memory":{"limit":67108864,"reservation":1048576,"swap":-1},` +
				`"cpu":{"shares":512,"quota":-1,"burst":10000,"period":50000,"cpus":"0-1","mems":"0","idle":0},"pids":{"limit":20}}`,
		},
	} {
		h.stdin = c.stdin
		if err := os.WriteFile(file, []byte(c.stdin), 0o600); err != nil {
			t.Fatal(err)
		}
		h.updates = nil
		r := h.run(append(append([]string{"update"}, c.args...), "c1")...).succeeds(t)
		if r.stdout != "" || len(h.updates) != 1 || h.updates[0].GetResources() != c.want {
			t.Errorf("%s: printed %q and asked for %v, want %s", c.name, r.stdout, h.updates, c.want)
		}
	}
}
