// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestACopyOfTheRootFileSystemCanBeTaken(t *testing.T) {
	t.Parallel()
	d := newDocker(t)
	name := d.launch(nil, "sh", "-c", "test -e /made || { mkdir /made; echo text > /made/file; rm /etc/not-a-script; }; echo ready; exec sleep 1000")
	d.says(name, "ready")
	diff := strings.Split(d.do("diff", name), "\n")
	for _, want := range []string{"A /made", "A /made/file", "D /etc/not-a-script", "C /etc"} {
		if !slices.Contains(diff, want) {
			t.Errorf("docker diff says %q without %q", diff, want)
		}
	}
	expect(t, "the exported file", fileOfTar(t, d.try("export", name).Stdout, "made/file"), "text\n")

	image := "committed:" + strings.TrimPrefix(name, ground.Token+"-docker-")
	d.do("commit", "--change", `CMD ["cat","/made/file"]`, name, image)
	t.Cleanup(func() { d.client().cleanUp(nil, "image", "rm", "-f", image) })
	expect(t, "the state after a commit", d.inspect(name, ".State.Status"), "running")
	expect(t, "what a container of the image says", d.do("run", "--rm", "--runtime", runtimeUnderTest(), "--network", "none", image), "text")

	d.do("stop", "-t", "0", name)
	dir := t.TempDir()
	d.do("cp", name+":/made/file", filepath.Join(dir, "file"))
	expect(t, "a file copied from a stopped container", read(t, filepath.Join(dir, "file")), "text\n")
	write(t, filepath.Join(dir, "file"), "changed while it was stopped\n")
	d.do("cp", filepath.Join(dir, "file"), name+":/made/file")
	d.do("start", name)
	expect(t, "a file copied into it", d.do("exec", name, "cat", "/made/file"), "changed while it was stopped")
}

func fileOfTar(t *testing.T, archive, name string) string {
	t.Helper()
	for r := tar.NewReader(strings.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			t.Errorf("the archive of %d bytes has no %s", len(archive), name)
			return ""
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Name == name {
			var text bytes.Buffer
			if _, err := io.Copy(&text, r); err != nil {
				t.Fatal(err)
			}
			return text.String()
		}
	}
}

func TestAClientComesBackToItsContainer(t *testing.T) {
	t.Parallel()
	d := newDocker(t)
	cid := filepath.Join(t.TempDir(), "cid")
	name := d.launch(opts("-it", "--cidfile", cid, "--label", "purpose=attach"), "sh", "-c", `while read line; do echo "<$line>"; test "$line" = end && exit 6; done`)
	expect(t, "the id in the file", read(t, cid), d.inspect(name, ".Id"))
	expect(t, "the containers with the label", d.do("ps", "--no-trunc", "-q", "--filter", "label=purpose=attach"), d.inspect(name, ".Id"))
	renamed := name + "-renamed"
	d.do("rename", name, renamed)
	t.Cleanup(func() { d.remove(renamed) })

	tt := d.terminal(24, 80, "attach", renamed)
	tt.types("first\r")
	tt.shows("<first>\r\n")
	tt.types("\x10\x11") // ^P^Q
	tt.shows("read escape sequence")
	expect(t, "the state after a detach", d.inspect(renamed, ".State.Status"), "running")
	tt = d.terminal(24, 80, "attach", renamed)
	tt.types("end\r")
	tt.shows("<end>\r\n")
	tt.ends(6)
	expect(t, "the code that wait gives", d.do("wait", renamed), "6")
	expect(t, "the log", strings.Contains(d.do("logs", renamed), "<first>\r\n"), true)
}

func TestDockerTopTakesOptionsOfPS(t *testing.T) {
	t.Parallel()
	d := newDocker(t)
	name := d.launch(nil, "sleep", "1000")
	lines := strings.Split(d.do("top", name, "-o", "pid,ppid,comm"), "\n")
	if len(lines) < 2 || !regexp.MustCompile(`PID\s+PPID\s+COMMAND`).MatchString(lines[0]) || !strings.Contains(lines[1], d.inspect(name, ".State.Pid")) {
		t.Errorf("docker top -o pid,ppid,comm says %q", lines)
	}
}

func TestAnExecThatCannotBeSaysWhy(t *testing.T) {
	t.Parallel()
	d := newDocker(t)
	name := d.launch(nil, "sleep", "1000")
	for _, c := range []struct {
		name    string
		options []string
		command string
		codes   []int // Docker 20.10 says 126 or 127; later versions tell the two apart
		says    string
	}{
		{"missing program", nil, "no-such-program", []int{126, 127}, `exec: "no-such-program": executable file not found in $PATH`},
		{"missing path", nil, "/bin/no-such", []int{126, 127}, "no such file or directory"},
		{"no permission", nil, "/etc/not-a-script", []int{126}, "permission denied"},
		{"missing directory", opts("-w", "/no/such"), "true", []int{126, 127}, `chdir to cwd ("/no/such") set in config.json failed: no such file or directory`},
		{"missing user", opts("-u", "nobody-such"), "true", []int{126}, "unable to find user nobody-such"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := dockerUser{t, d.engine}.try(append(append([]string{"exec"}, c.options...), name, c.command)...)
			if !slices.Contains(c.codes, r.Code) {
				t.Errorf("the exit code is %d", r.Code)
			}
			if all := r.Stdout + r.Stderr; !strings.Contains(all, c.says) {
				t.Errorf("docker says %q without %q", all, c.says)
			}
		})
	}
	expect(t, "the state", d.inspect(name, ".State.Status"), "running")
}

func TestSystemCallsAreFilteredByTheProfileOfTheUser(t *testing.T) {
	t.Parallel()
	d := newDocker(t)
	profile := filepath.Join(t.TempDir(), "profile.json")
	write(t, profile, `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}`)
	r := d.tryRun(opts("--security-opt", "seccomp="+profile), "sh", "-c", "mkdir /x 2>&1; touch /y && echo touched")
	expect(t, "the output", r.Stdout, "mkdir: can't create directory '/x': No space left on device\ntouched\n")
	r = d.tryRun(opts("--security-opt", "seccomp=unconfined"), "sh", "-c", "grep '^Seccomp:' /proc/self/status | tr -d '\\t'")
	expect(t, "the filter of one without", r.Stdout, "Seccomp:0\n")
}
