// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// dockerBundle writes a bundle as Docker 20.10 makes it for "run --network
// none", changed by edit.
func dockerBundle(t *testing.T, edit func(*specs.Spec)) string {
	t.Helper()
	dir := t.TempDir()
	text, err := os.ReadFile("testdata/docker.json")
	if err != nil {
		t.Fatal(err)
	}
	text = []byte(strings.NewReplacer("ROOTFS", filepath.Join(dir, "rootfs"), "BUNDLE", dir).Replace(string(text)))
	if edit != nil {
		var spec specs.Spec
		if err := json.Unmarshal(text, &spec); err != nil {
			t.Fatal(err)
		}
		edit(&spec)
		if text, err = json.Marshal(spec); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"resolv.conf", "hostname", "hosts"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "rootfs"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, ConfigName), text, 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestDockersOrdinaryConfigPasses(t *testing.T) {
	dir := dockerBundle(t, nil)
	b, err := Load(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if len(b.Binds) != 3 || b.Binds[0].Destination != "/etc/resolv.conf" || b.Binds[0].IsDir || !b.Binds[0].Recursive {
		t.Errorf("binds %+v", b.Binds)
	}
	if b.Rootfs != filepath.Join(dir, "rootfs") {
		t.Errorf("rootfs %q", b.Rootfs)
	}
}

func TestConfigIsKeptAsWritten(t *testing.T) {
	dir := dockerBundle(t, func(s *specs.Spec) {
		s.Process.ApparmorProfile = ""
		s.Linux.Resources.Memory.Swappiness = nil
	})
	path := filepath.Join(dir, ConfigName)
	text, _ := os.ReadFile(path)
	// An unknown property must reach the guest's side unchanged and bother nobody.
	text = []byte(strings.Replace(string(text), "{", `{"com.example.unknown": {"deep": [1]},`, 1))
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	b, err := Load(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if string(b.Config) != string(text) {
		t.Error("the text differs from the file's")
	}
}

// TestWhatAsksForNothingStaysOutOfTheGuest: the guest refuses an AppArmor
// profile, and Docker names its default wherever the host has AppArmor.
func TestWhatAsksForNothingStaysOutOfTheGuest(t *testing.T) {
	dir := dockerBundle(t, nil)
	path := filepath.Join(dir, ConfigName)
	text, _ := os.ReadFile(path)
	text = []byte(strings.Replace(string(text), "{", `{"com.example.unknown": {"deep": [1]},`, 1))
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	b, err := Load(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, gone := range []string{"apparmorProfile", "swappiness"} {
		if strings.Contains(string(b.Config), gone) {
			t.Errorf("%s is still there", gone)
		}
	}
	if !strings.Contains(string(b.Config), `"com.example.unknown":{"deep":[1]}`) {
		t.Error("an unknown property is lost")
	}
	var before, after specs.Spec
	if err := errors.Join(json.Unmarshal(text, &before), json.Unmarshal(b.Config, &after)); err != nil {
		t.Fatal(err)
	}
	before.Process.ApparmorProfile, before.Linux.Resources.Memory.Swappiness = "", nil
	if !reflect.DeepEqual(before, after) {
		t.Error("something else changed")
	}
	guest, err := ProcessForGuest(&specs.Process{Args: []string{"x"}, Cwd: "/", ApparmorProfile: "docker-default"}, Options{})
	if err != nil || guest.ApparmorProfile != "" {
		t.Errorf("%+v, %v", guest, err)
	}
}

func TestOCIVersions(t *testing.T) {
	for version, good := range map[string]bool{
		"1.0.0": true, "1.0.2-dev": true, "1.3.0": true, "1.99.7": true, "1.0.0-rc5": true, "1.2.0+build": true,
		"": false, "2.0.0": false, "0.9.0": false, "1.0": false, "v1.0.0": false, "1.0.0.0": false, "one": false, "1.0.0-": false,
	} {
		if err := checkVersion(version); (err == nil) != good {
			t.Errorf("%q: %v", version, err)
		}
	}
}

func TestMissingProcessMayBeCreated(t *testing.T) {
	if _, err := Load(dockerBundle(t, func(s *specs.Spec) { s.Process = nil }), Options{}); err != nil {
		t.Fatal(err)
	}
}

func TestUnusableBundles(t *testing.T) {
	for name, c := range map[string]struct {
		change func(t *testing.T, dir string)
		want   string
	}{
		"no config": {func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, ConfigName)) }, "JSON specification file"},
		"null":      {func(t *testing.T, dir string) { os.WriteFile(filepath.Join(dir, ConfigName), []byte("null"), 0o644) }, "holds null"},
		"no JSON":   {func(t *testing.T, dir string) { os.WriteFile(filepath.Join(dir, ConfigName), []byte("{"), 0o644) }, "is not a configuration"},
		"two values": {func(t *testing.T, dir string) {
			os.WriteFile(filepath.Join(dir, ConfigName), []byte(`{"ociVersion":"1.0.0"}{}`), 0o644)
		}, "is not a configuration"},
		"no rootfs": {func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, "rootfs")) }, "root file system"},
		"rootfs is a file": {func(t *testing.T, dir string) {
			os.Remove(filepath.Join(dir, "rootfs"))
			os.WriteFile(filepath.Join(dir, "rootfs"), nil, 0o644)
		}, "must be a directory"},
		"no bind source": {func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, "hosts")) }, "missing on the host"},
		"huge":           {func(t *testing.T, dir string) { os.Truncate(filepath.Join(dir, ConfigName), maxConfig+1) }, "larger than"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := dockerBundle(t, nil)
			c.change(t, dir)
			_, err := Load(dir, Options{})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %v, want %q", err, c.want)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %q", err)
			}
		})
	}
}

func TestCgroupsPathForms(t *testing.T) {
	for _, c := range []struct {
		path    string
		systemd bool
		good    bool
	}{
		{"/docker/1", false, true}, {"kubepods/pod1/2", false, true}, {"", true, true}, {"", false, true},
		{"system.slice:docker:1", true, true},
		{"system.slice:docker:1", false, false}, {"/docker/1", true, false}, {"/a/../../b", false, false},
	} {
		spec := &specs.Spec{Linux: &specs.Linux{CgroupsPath: c.path}}
		if err := checkCgroupsPath(spec, Options{SystemdCgroup: c.systemd}); (err == nil) != c.good {
			t.Errorf("%q, systemd %v: %v", c.path, c.systemd, err)
		}
	}
}

func TestBindSources(t *testing.T) {
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(filepath.Join(dir, "d"), 0o755))
	must(os.WriteFile(filepath.Join(dir, "f"), nil, 0o644))
	must(os.Symlink("d", filepath.Join(dir, "link")))
	must(unix.Mkfifo(filepath.Join(dir, "fifo"), 0o644))
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	must(err)
	defer unix.Close(fd)
	must(unix.Bind(fd, &unix.SockaddrUnix{Name: filepath.Join(dir, "sock")}))

	for _, c := range []struct {
		source string
		want   string // empty: good
		isDir  bool
	}{
		{"d", "", true}, {"link", "", true}, {filepath.Join(dir, "f"), "", false}, {"/dev/null", "", false},
		{"fifo", "named pipe", false}, {"sock", "socket", false}, {"nothing", "missing", false}, {"/dev/kmsg", "", false},
	} {
		found, _, err := binds(dir, &specs.Spec{Mounts: []specs.Mount{{Destination: "x/../y", Type: "bind", Source: c.source, Options: []string{"rbind", "ro", "rslave"}}}})
		if c.want != "" {
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: error %v, want %q", c.source, err, c.want)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.source, err)
			continue
		}
		if b := found[0]; b.IsDir != c.isDir || !b.ReadOnly || !b.Recursive || (b.Follow == "rslave") != c.isDir || b.Destination != "/y" || !filepath.IsAbs(b.Source) {
			t.Errorf("%s: %+v", c.source, b)
		}
	}
}
