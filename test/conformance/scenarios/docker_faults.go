// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// dockerFaults are what goes wrong by itself or by somebody's hand.
var dockerFaults = chain{
	{
		name: "exec fails on workdir", says: "a code for people and the name of the directory that is not there",
		act: func(t *trial) {
			name := t.start("faults", nil, deaf)
			t.docker("exec", "-w", "/nonexist", name, "id").fails(126, `chdir to cwd ("/nonexist") set in config.json failed: no such file or directory`)
		},
	},
	{
		name: "exec user missing", says: "refused by the engine, by the name of the user",
		act: func(t *trial) {
			t.docker("exec", "-u", "nosuch", t.name("faults"), "id").fails(126, "unable to find user nosuch")
		},
	},
	{
		name: "attach + exec session killed: docker exec pid kill via API",
		says: "the death of an exec's process on the host is the end of that exec with 137; the container and who is attached to it see none of it",
		act: func(t *trial) {
			name := t.name("faults")
			attached := t.background("attach", "--no-stdin", "--sig-proxy=false", name)
			session := t.background("exec", name, "sh", "-c", "echo $((6 * 7)) in; exec sleep 1000")
			session.until("42 in\n")
			pid := t.execPID(name)
			t.holds("docker top lists the exec's process", slices.Contains(strings.Fields(t.docker("top", name, "-o", "pid").succeeds().text()), strconv.Itoa(pid)))
			t.kill(pid)
			session.ends(137)
			equal(t, "the state", t.inspect(name, ".State.Status"), "running")
			t.docker("exec", name, "echo", "alive").ends(0, "alive\n")
			t.docker("kill", name).succeeds()
			attached.ends(137)
			t.removed(name)
		},
	},
	{
		name: "host kill -9 of container pid", says: "the death of the container's process on the host is its end with 137, and it can be started again",
		act: func(t *trial) {
			name := t.start("killed", nil, deaf)
			t.killContainer(t.inspect(name, ".State.Pid"))
			t.docker("wait", name).ends(0, "137\n")
			equal(t, "the record", t.inspect(name, ".State.Status", ".State.OOMKilled"), "exited false")
			t.docker("start", name).succeeds()
			equal(t, "the state", t.inspect(name, ".State.Status"), "running")
			t.removed(name)
		},
	},
	{
		name: "shim killed", says: "the death of containerd's shim ends its container, which can be removed",
		act: func(t *trial) {
			name := t.start("shimless", nil, deaf)
			id := t.inspect(name, ".Id")
			processes, err := t.bench.ground.Processes()
			if err != nil {
				t.complain("%w", err)
			}
			for _, p := range processes {
				if filepath.Base(p.Exe) == "containerd-shim-runc-v2" && strings.Contains(p.Command, id) {
					t.kill(p.PID)
				}
			}
			t.until("the state", "exited", func() string { return t.inspect(name, ".State.Status") })
			t.removed(name)
		},
	},
}

// kill is SIGKILL to a process of the host.
func (t *trial) kill(pid int) {
	if pid <= 1 { // 0 and 1 are no process that a scenario may end
		t.complain("there is no process %d to be killed", pid)
		return
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.complain("kill -9 %d: %w", pid, err)
	}
}

func (t *trial) killContainer(pid string) {
	n, err := strconv.Atoi(pid)
	if err != nil {
		t.complain("the container's pid: %w", err)
		return
	}
	t.kill(n)
}

// execPID is the pid of a container's one exec, which Docker tells in its API
// alone.
func (t *trial) execPID(name string) int {
	if t.hung {
		return 0
	}
	ctx, cancel := context.WithTimeout(t.ctx, stepTime)
	defer cancel()
	socket := strings.TrimPrefix(t.bench.dockerEngine.Address(), "unix://")
	api := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	get := func(path string, into any) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker"+path, nil)
		if err != nil {
			return err
		}
		r, err := api.Do(req)
		if err != nil {
			return err
		}
		defer r.Body.Close()
		if r.StatusCode != http.StatusOK {
			return fmt.Errorf("GET %s: %s", path, r.Status)
		}
		return json.NewDecoder(r.Body).Decode(into)
	}
	var container struct{ ExecIDs []string }
	if err := get("/containers/"+name+"/json", &container); err != nil {
		t.complain("%w", err)
	}
	var running []int
	for _, id := range container.ExecIDs {
		var session struct {
			Running bool
			Pid     int
		}
		if err := get("/exec/"+id+"/json", &session); err != nil {
			t.complain("%w", err)
		}
		if session.Running {
			running = append(running, session.Pid)
		}
	}
	if len(running) != 1 {
		t.complain("%d execs run instead of one", len(running))
		return 0
	}
	return running[0]
}
