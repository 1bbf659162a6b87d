// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func hostRelease(t *testing.T) string {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	return unix.ByteSliceToString(u.Release[:])
}

func TestDockerRunShowsTheGuestKernel(t *testing.T) {
	d := newDocker(t)
	got := d.run(nil, "uname", "-r")
	if reference() {
		expect(t, "the kernel of the reference", got, hostRelease(t))
		return
	}
	want, err := ground.KernelRelease()
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "the container's kernel", got, want)
	if got == hostRelease(t) {
		t.Errorf("the container runs on the host's kernel %s", got)
	}
}

func TestDockerExitCodesAreTheProgramsOwn(t *testing.T) {
	d := newDocker(t)
	for _, c := range []struct {
		name    string
		command []string
		code    int
		says    string
	}{
		{"success", []string{"true"}, 0, ""},
		{"failure", []string{"false"}, 1, ""},
		{"any", []string{"sh", "-c", "exit 42"}, 42, ""},
		{"highest", []string{"sh", "-c", "exit 255"}, 255, ""},
		{"killed child", []string{"sh", "-c", "sleep 100 & kill -9 $!; wait $!"}, 137, ""},
		{"missing program", []string{"no-such-program"}, 127, "executable file not found"},
		{"missing path", []string{"/bin/no-such-program"}, 127, "no such file or directory"},
		{"no permission", []string{"/etc/not-a-script"}, 126, "permission denied"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := dockerUser{t, d.engine}
			r := d.tryRun(nil, c.command...)
			expect(t, "the exit code", r.Code, c.code)
			if !strings.Contains(r.Stderr, c.says) {
				t.Errorf("docker says %q without %q", r.Stderr, c.says)
			}
		})
	}
}

func TestDockerRunDoesWhatItsOptionsSay(t *testing.T) {
	d := newDocker(t)
	profile := filepath.Join(t.TempDir(), "seccomp.json")
	const filter = `{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
		"syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]}`
	if err := os.WriteFile(profile, []byte(filter), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		options []string
		script  string
		want    string
	}{
		{"working directory", opts("-w", "/var/tmp"), "pwd", "/var/tmp"},
		{"working directory is made", opts("-w", "/not/yet"), "pwd", "/not/yet"},
		{"environment", opts("-e", "GREETING=hello world", "-e", "EMPTY="), `echo "$GREETING,$EMPTY,${UNSET-unset}"`, "hello world,,unset"},
		{"user by number", opts("-u", "1234:4321"), `id -u; id -g`, "1234\n4321"},
		{"user by name has its groups", opts("-u", "app"), `id -un; id -G; echo $HOME`, "app\n1000 2000\n/home/app"},
		{"additional group", opts("-u", "1000:1000", "--group-add", "77"), `id -G`, "1000 77"},
		{"hostname", opts("--hostname", "porthole"), `hostname; cat /etc/hostname`, "porthole\nporthole"},
		{"name service", opts("--add-host", "lighthouse:192.0.2.7"), `grep -c lighthouse /etc/hosts; test -r /etc/resolv.conf && echo readable`, "1\nreadable"},
		{"read-only root", opts("--read-only"), `touch /x 2>&1; touch /tmp/y 2>&1`, "touch: /x: Read-only file system\ntouch: /tmp/y: Read-only file system"},
		{"tmpfs", opts("--read-only", "--tmpfs", "/scratch:size=1m,mode=1777"),
			`echo kept > /scratch/f && cat /scratch/f; awk '$2 == "/scratch" {print $3}' /proc/mounts; dd if=/dev/zero of=/scratch/big bs=1k count=2000 2>&1 | grep -o 'No space left on device'`,
			"kept\ntmpfs\nNo space left on device"},
		{"shared memory", opts("--shm-size", "2m"), `df -k /dev/shm | awk 'NR == 2 {print $2}'`, "2048"},
		{"process 1", nil, `echo $$; test -d /proc/2/root && echo more || echo alone`, "1\nalone"},
		{"init", opts("--init"), `basename $(readlink /proc/1/exe)`, "docker-init"},
		{"no capability", opts("--cap-drop", "ALL"), `grep CapEff /proc/self/status | tr -d '\t'`, "CapEff:0000000000000000"},
		{"one capability", opts("--cap-drop", "ALL", "--cap-add", "NET_RAW"), `grep CapEff /proc/self/status | tr -d '\t'`, "CapEff:0000000000002000"},
		{"limits of a process", opts("--ulimit", "nofile=123:456"), `ulimit -Sn; ulimit -Hn`, "123\n456"},
		{"kernel parameter", opts("--sysctl", "net.ipv4.ip_unprivileged_port_start=81"), `cat /proc/sys/net/ipv4/ip_unprivileged_port_start`, "81"},
		{"no new privileges", opts("--security-opt", "no-new-privileges"), `grep NoNewPrivs /proc/self/status | tr -d '\t'`, "NoNewPrivs:1"},
		{"system calls are filtered", nil, `unshare -U true 2>&1 | grep -o 'Operation not permitted'; grep '^Seccomp:' /proc/self/status | tr -d '\t'`, "Operation not permitted\nSeccomp:2"},
		{"system calls are not filtered", opts("--security-opt", "seccomp=unconfined"), `unshare -U true && grep '^Seccomp:' /proc/self/status | tr -d '\t'`, "Seccomp:0"},
		{"system calls are filtered by a profile", opts("--security-opt", "seccomp="+profile), `mkdir /x 2>&1 | grep -o 'Operation not supported'; unshare -U true && echo others are not`, "Operation not supported\nothers are not"},
		{"masked paths", nil, `cat /proc/kcore /proc/keys /proc/timer_list 2>/dev/null | head -c 100 | wc -c; ls -A /sys/firmware /proc/acpi 2>/dev/null | grep -v :$ | grep -c .`, "0\n0"},
		{"read-only paths", nil, `(echo 1 > /proc/sys/kernel/panic) 2>&1 | grep -o 'Read-only file system'`, "Read-only file system"},
		{"devices", nil, `ls /dev | grep -E '^(null|zero|full|random|urandom|tty)$' | sort | tr '\n' ' '; test -b /dev/vda && echo disk`, "full null random tty urandom zero "},
		{"no network", nil, `ls /sys/class/net; ping -c 1 -W 60 127.0.0.1 > /dev/null && echo loopback`, "lo\nloopback"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := dockerUser{t, d.engine}.tryRun(c.options, "sh", "-c", c.script)
			expect(t, "the output", strings.TrimSuffix(r.Stdout, "\n"), strings.TrimSuffix(c.want, "\n"))
			if t.Failed() {
				t.Logf("exit code %d, stderr %q", r.Code, r.Stderr)
			}
		})
	}
}

func TestDockerEntrypointReplacesTheProgram(t *testing.T) {
	expect(t, "the output", newDocker(t).run(opts("--entrypoint", "/bin/echo"), "as", "arguments"), "as arguments")
}

func TestDockerArgumentsArriveAsTheyAre(t *testing.T) {
	args := []string{"", " ", "a b", "$HOME", "*", `"'\`, "ümlaut", strings.Repeat("x", 5000), "-e", "line\nbreak"}
	got := newDocker(t).run(nil, append([]string{"printf", "[%s]"}, args...)...)
	expect(t, "the output", got, "["+strings.Join(args, "][")+"]")
}

func TestTenContainersAtOnceAreTenMachines(t *testing.T) {
	d := newDocker(t)
	const count = 10
	var wg sync.WaitGroup
	var mu sync.Mutex // guards boots
	boots := map[string]bool{}
	for i := range count {
		name := "machine" + string(rune('0'+i))
		wg.Go(func() {
			r, err := d.engine.Docker(within(t, 2*launchTime), nil,
				runArgs(opts("--rm", "--hostname", name), "sh", "-c", "hostname; cat /proc/sys/kernel/random/boot_id")...)
			lines := strings.Fields(r.Stdout)
			if err != nil || r.Code != 0 || len(lines) != 2 || lines[0] != name {
				t.Errorf("container %s: error %v, code %d, stdout %q, stderr %q", name, err, r.Code, r.Stdout, r.Stderr)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			boots[lines[1]] = true
		})
	}
	wg.Wait()
	if !reference() && !t.Failed() {
		expect(t, "the number of kernels", len(boots), count)
	}
}
