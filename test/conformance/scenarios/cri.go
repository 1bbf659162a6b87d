// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"bulkhead/test/e2e/engine"
)

// cri runs a crictl command.
func (t *trial) cri(args ...string) outcome { return t.run(t.bench.crictl, "", args...) }

// criFile writes a configuration for crictl.
func (t *trial) criFile(name string, value any) (path string) {
	text, err := json.Marshal(value)
	path = filepath.Join(t.bench.stage.Dir, name)
	if err == nil {
		err = os.WriteFile(path, text, 0o644)
	}
	if err != nil {
		t.complain("%w", err)
	}
	return path
}

// object is one of JSON.
type object = map[string]any

// criState is the state of a container, or of a pod by "inspectp".
func (t *trial) criState(verb, id string) string {
	return t.cri(verb, "-o", "go-template", "--template", "{{.status.state}}", id).succeeds().text()
}

// execSync runs a script in the container by ExecSync; crictl adds lines to its
// output.
func (t *trial) execSync(script string) outcome {
	return t.cri("exec", "-s", t.shared["container"], "sh", "-c", script)
}

// podPort is where a container of the pod serves, and hostPort where the host's
// plugin of CNI publishes that.
const podPort, hostPort = 8080, 18080

// readPort reads all that somebody says at an address beside the pods.
func (t *trial) readPort(address string) string {
	conn, err := t.bench.criEngine.Net.Dial(t.ctx, "tcp", address)
	if err != nil {
		t.complain("%w", err)
		return ""
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(goneTime)); err != nil {
		t.complain("%w", err)
	}
	text, err := io.ReadAll(conn)
	if err != nil {
		t.complain("%w", err)
	}
	return strings.TrimSpace(string(text))
}

var criChains = []chain{{
	{
		name: "runp", says: "a pod's sandbox runs",
		act: func(t *trial) {
			t.criFile("pod.json", object{
				"metadata": object{"name": "pod", "namespace": "scenarios", "uid": "1", "attempt": 0},
				"hostname": "porthole", "log_directory": t.bench.criEngine.LogDir(),
				"port_mappings": []object{{"container_port": podPort, "host_port": hostPort}},
				"linux":         object{"cgroup_parent": t.bench.criEngine.CgroupParent()},
			})
			pod := t.cri("runp", "--runtime", engine.Handler, filepath.Join(t.bench.stage.Dir, "pod.json")).succeeds().text()
			t.shared["pod"] = pod
			equal(t, "the pod's state", t.criState("inspectp", pod), "SANDBOX_READY")
		},
	},
	{
		name: "create", says: "a container of the pod is made but does not run",
		act: func(t *trial) {
			path := t.criFile("container.json", object{
				"metadata": object{"name": "container"}, "image": object{"image": engine.CtrImage},
				"command": []string{"sh", "-c", "hostname; " + talker}, "log_path": "container.log",
				"envs":  []object{{"key": "FROM", "value": "kubernetes"}},
				"linux": object{"resources": object{"memory_limit_in_bytes": 256 << 20}},
			})
			id := t.cri("create", "--no-pull", t.shared["pod"], path, filepath.Join(t.bench.stage.Dir, "pod.json")).succeeds().text()
			t.shared["container"] = id
			equal(t, "the state", t.criState("inspect", id), "CONTAINER_CREATED")
		},
	},
	{
		name: "start", says: "it runs",
		act: func(t *trial) {
			t.cri("start", t.shared["container"]).ends(0, t.shared["container"]+"\n")
			equal(t, "the state", t.criState("inspect", t.shared["container"]), "CONTAINER_RUNNING")
		},
	},
	{
		name: "pod network", says: "the container has the addresses that CNI gave to the pod, and reaches the gateway",
		act: func(t *trial) {
			address := t.cri("inspectp", "-o", "go-template", "--template", "{{.status.network.ip}}", t.shared["pod"]).succeeds().text()
			equal(t, "the address", t.execSync(`ip -o -4 addr show dev eth0 | awk '{print $4}'`).succeeds().text(), address+"/16")
			equal(t, "the number of IPv6 addresses", t.execSync("ip -o -6 addr show dev eth0 scope global | wc -l").succeeds().text(), "1")
			gateway := t.execSync(`ip route | awk '$1 == "default" {print $3}'`).succeeds().text()
			t.execSync("ping -c 1 -W 10 " + gateway).succeeds()
		},
	},
	{
		name: "pod port", says: "what another container of the pod serves is reached in the pod by 127.0.0.1, and on the host by the pod's port there",
		act: func(t *trial) {
			path := t.criFile("server.json", object{
				"metadata": object{"name": "server"}, "image": object{"image": engine.CtrImage},
				"command": []string{"nc", "-ll", "-p", fmt.Sprint(podPort), "-e", "/bin/hostname"}, "log_path": "server.log",
			})
			server := t.cri("create", "--no-pull", t.shared["pod"], path, filepath.Join(t.bench.stage.Dir, "pod.json")).succeeds().text()
			t.cri("start", server).succeeds()
			t.until("what the container reads", "porthole", func() string {
				return t.execSync(fmt.Sprintf("nc -w 10 127.0.0.1 %d < /dev/null", podPort)).text()
			})
			equal(t, "what the host reads", t.readPort(fmt.Sprintf("127.0.0.1:%d", hostPort)), "porthole")
			t.cri("rm", "-f", server).succeeds()
		},
	},
	{
		name: "exec sync", says: "a command in the container, its output and its code",
		act: func(t *trial) {
			equal(t, "the output", t.execSync("echo $FROM; hostname").succeeds().text(), "kubernetes\nporthole")
			t.execSync("exit 9").fails(1, "exited with 9")
		},
	},
	{
		name: "exec sync timeout", says: "a command that takes longer than it may is ended",
		act: func(t *trial) {
			t.cri("exec", "-s", "--timeout", "2", t.shared["container"], "sh", "-c", "trap '' TERM; echo $$ > /tmp/late; sleep 1000").fails(1, "DeadlineExceeded", "timeout 2s exceeded")
			t.until("what became of it", "gone", func() string {
				return t.execSync("test -s /tmp/late && ! kill -0 $(cat /tmp/late) 2>/dev/null && echo gone").text()
			})
		},
	},
	{
		name: "exec tty", says: "a command with a terminal of its own",
		act: func(t *trial) {
			o := t.terminal(t.bench.crictl, "ready\r\n", "word\r", "exec", "-it", t.shared["container"], "sh", "-c", `tty; echo ready; read line; echo "<$line>"`)
			o.ends(0, "/dev/pts/0\r\nready\r\nword\r\n<word>\r\n")
		},
	},
	{
		name: "stats", says: "what the container uses is counted",
		act: func(t *trial) {
			var stats struct {
				Stats []struct {
					CPU    struct{ UsageCoreNanoSeconds struct{ Value string } }
					Memory struct{ WorkingSetBytes struct{ Value string } }
				}
			}
			if err := json.Unmarshal([]byte(t.cri("stats", "-o", "json", t.shared["container"]).succeeds().Stdout), &stats); err != nil {
				t.complain("crictl stats: %w", err)
			}
			equal(t, "the number of containers in the statistics", len(stats.Stats), 1)
			if len(stats.Stats) == 1 {
				for what, value := range map[string]string{"processor": stats.Stats[0].CPU.UsageCoreNanoSeconds.Value, "memory": stats.Stats[0].Memory.WorkingSetBytes.Value} {
					t.holds("it uses "+what+": "+value, value != "" && value != "0")
				}
			}
		},
	},
	{
		name: "update", says: "a limit of memory changes while it runs",
		act: func(t *trial) {
			t.cri("update", "--memory", "134217728", t.shared["container"]).succeeds()
			equal(t, "the limit", t.execSync(memoryLimit).succeeds().text(), "134217728")
		},
	},
	{
		name: "inspect", says: "the record: image, state, log, pid of the host",
		act: func(t *trial) {
			var record struct {
				Status struct {
					State    string
					Metadata struct{ Name string }
					LogPath  string
				}
				Info struct{ Pid int }
			}
			if err := json.Unmarshal([]byte(t.cri("inspect", t.shared["container"]).succeeds().Stdout), &record); err != nil {
				t.complain("crictl inspect: %w", err)
			}
			equal(t, "the name", record.Status.Metadata.Name, "container")
			equal(t, "the state", record.Status.State, "CONTAINER_RUNNING")
			equal(t, "the log", record.Status.LogPath, filepath.Join(t.bench.criEngine.LogDir(), "container.log"))
			t.holds("its process exists", record.Info.Pid > 1)
		},
	},
	{
		name: "logs", says: "what it wrote",
		act: func(t *trial) { t.cri("logs", t.shared["container"]).ends(0, "porthole\nup\n") },
	},
	{
		name: "stop", says: "it is asked to end, and its code is recorded",
		act: func(t *trial) {
			t.cri("stop", "--timeout", "60", t.shared["container"]).succeeds()
			o := t.cri("inspect", "-o", "go-template", "--template", "{{.status.state}} {{.status.exitCode}}", t.shared["container"])
			o.ends(0, "CONTAINER_EXITED 3\n")
		},
	},
	{
		name: "rm", says: "an ended container is removed",
		act: func(t *trial) {
			t.cri("rm", t.shared["container"]).succeeds()
			t.cri("ps", "-a", "-q").ends(0, "")
		},
	},
	{
		name: "stopp", says: "the pod is stopped",
		act: func(t *trial) {
			t.cri("stopp", t.shared["pod"]).succeeds()
			equal(t, "the pod's state", t.criState("inspectp", t.shared["pod"]), "SANDBOX_NOTREADY")
		},
	},
	{
		name: "rmp", says: "the pod is removed",
		act: func(t *trial) {
			t.cri("rmp", t.shared["pod"]).succeeds()
			t.holds("no pod is listed", strings.TrimSpace(t.cri("pods", "-q").succeeds().Stdout) == "")
		},
	},
}}
