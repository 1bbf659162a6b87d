// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"bulkhead/vm-worker/hypervisor"
	"bulkhead/vm-worker/jail"

	"golang.org/x/sys/unix"
)

// templateSpec is a machine whose guest leaves its share alone until it is told to mount it.
func templateSpec(t testing.TB) hypervisor.Spec {
	s := newSpec(t)
	s.KernelArgs = []string{"test.noshare"}
	s.Max = hypervisor.Size{VCPUs: 2, MemoryBytes: s.MemoryBytes + 2*growthBlock}
	return s
}

// makeTemplate makes a template that the test's end gives up.
func makeTemplate(t testing.TB, d *Driver, s hypervisor.Spec) hypervisor.Template {
	t.Helper()
	s.Dir = filepath.Join(s.Dir, "template")
	if err := os.Mkdir(s.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	made, err := d.MakeTemplate(t.Context(), s, answers)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("made in %s: %d MiB", time.Since(began), made.Bytes()>>20)
	t.Cleanup(func() { made.Close() })
	return made
}

// answers waits until the test's guest does.
func answers(ctx context.Context, v hypervisor.VM) error {
	conn, err := v.DialCtl(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if _, err := io.WriteString(conn, "echo anybody\n"); err != nil {
		return err
	}
	for in := bufio.NewScanner(conn); in.Scan(); {
		if in.Text() == "anybody" { // a guest that has booted has said something before
			return nil
		}
	}
	return errors.New("the guest does not answer")
}

// clone starts a VM from the template in a directory of its own.
func clone(t testing.TB, d *Driver, s hypervisor.Spec, from hypervisor.Template, name string) hypervisor.VM {
	t.Helper()
	s.ID, s.Dir, s.From = s.ID+name, filepath.Join(s.Dir, name), from
	if err := os.Mkdir(s.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	v, err := d.Start(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { killVM(t, v) })
	return v
}

func TestVMsContinueFromATemplate(t *testing.T) {
	t.Parallel()
	d, s := New(Options{}), templateSpec(t)
	from := makeTemplate(t, d, s)
	sum := digestOf(t, from)
	for i := range 3 {
		began := time.Now()
		v := clone(t, d, s, from, fmt.Sprint("c", i))
		c := connect(t, v)
		if got := c.ask("echo hello"); got != "hello" {
			t.Fatalf("the clone answers %q", got)
		}
		t.Logf("from its start to its first answer %s", time.Since(began))
		if v.Record().Template != from.Key() {
			t.Errorf("the record says template %q", v.Record().Template)
		}
		if got := c.ask("share"); got != "ok" {
			t.Fatalf("mounting the share: %s", got)
		}
		if got := c.ask("list /run/share"); got != "" {
			t.Errorf("the share holds %q", got)
		}
		var kib int
		if i == 0 { // a clone has the room to grow that its template had
			if err := v.Resize(t.Context(), hypervisor.Size{VCPUs: 2, MemoryBytes: s.Max.MemoryBytes}); err != nil {
				t.Error(err)
			}
			if _, err := fmt.Sscanf(c.ask("read /proc/meminfo"), "MemTotal: %d kB", &kib); err != nil || kib < 300<<10 {
				t.Errorf("the clone has %d KiB, %v", kib, err)
			}
		}
	}
	if digestOf(t, from) != sum {
		t.Error("the template is another after VMs have run from it")
	}
}

// manyClones is how many clones of one template are compared with each other.
const manyClones = 64

// TestNoTwoClonesDrawTheSameNumbers shows what the new generation id of each QEMU does, without a word of the host; what
// the agent adds by the host's greeting comes on top.
func TestNoTwoClonesDrawTheSameNumbers(t *testing.T) {
	for name, o := range map[string]Options{"started": {}, "forked": {Zygote: buildZygote(t)}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			drawsDiffer(t, New(o), o.Zygote != "")
		})
	}
}

func drawsDiffer(t *testing.T, d *Driver, forked bool) {
	s := templateSpec(t)
	from := makeTemplate(t, d, s)
	seen := map[string]int{}
	for i := range manyClones {
		v := clone(t, d, s, from, fmt.Sprint("c", i))
		if v.(*vm).forked != forked {
			t.Fatalf("forked is %t, want %t: %v", v.(*vm).forked, forked, from.Worn())
		}
		c := connect(t, v)
		told := "forked 1"
		if forked {
			told = "forked 1 2" // what it is a fork of is a clone itself
		}
		if got := c.ask(told); got != "ok" {
			t.Fatal(got)
		}
		// A card would be an identity too: it comes by hot-plug, with the address of its link (vm-worker).
		if got := c.ask("list /sys/class/net"); got != "lo" {
			t.Fatalf("clone %d has the interfaces %q", i, got)
		}
		for _, question := range []string{"random", "rdrand", "rdseed", "read /proc/sys/kernel/random/boot_id", "read /proc/sys/kernel/random/uuid"} {
			number := c.ask(question)
			if len(number) < 32 {
				t.Fatalf("%q gives %q", question, number)
			}
			if other, ok := seen[number]; ok {
				t.Errorf("%q gives clones %d and %d the same %s", question, other, i, number)
			}
			seen[number] = i
		}
		c.conn.Close()
		killVM(t, v)
	}
}

func TestACloneGivesFreeMemoryBack(t *testing.T) {
	t.Parallel()
	s := templateSpec(t)
	s.MemoryBytes = 256 << 20
	d := New(Options{Preload: buildPreload(t)})
	v := clone(t, d, s, makeTemplate(t, d, s), "c")
	c := connect(t, v)
	if got := c.ask("fill"); got != "ok" {
		t.Fatal(got)
	}
	full := privateMemory(t, v)
	if got := c.ask("empty"); got != "ok" {
		t.Fatal(got)
	}
	const most = 32 << 20 // of 64 MiB and a little
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		now := privateMemory(t, v)
		if now < full-most {
			t.Logf("of %d MiB of its own it has %d", full>>20, now>>20)
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("of %d MiB of its own it still has %d; qemu says %s", full>>20, now>>20, errorLogText(v.(*vm).stderr))
		}
	}
}

// privateMemory is what a VM has written to, in bytes.
func privateMemory(t *testing.T, v hypervisor.VM) int64 {
	t.Helper()
	for line := range strings.Lines(readFile(t, fmt.Sprintf("/proc/%d/smaps_rollup", v.Record().PID))) {
		if f := strings.Fields(line); f[0] == "Private_Dirty:" {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kib << 10
		}
	}
	t.Fatal("the kernel does not tell the VM's memory")
	return 0
}

func TestACloneOutlivesItsTemplateAndItsStarter(t *testing.T) {
	t.Parallel()
	d, s := New(Options{}), templateSpec(t)
	from := makeTemplate(t, d, s)
	v := clone(t, d, s, from, "c")
	c := connect(t, v)
	if got := c.ask("echo hello"); got != "hello" {
		t.Fatalf("the clone answers %q", got)
	}
	c.conn.Close()
	rec := v.Record()
	v.Release()
	if err := from.Close(); err != nil { // the VM does not need it any more
		t.Error(err)
	}
	again, err := New(Options{}).Adopt(t.Context(), rec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { killVM(t, again) })
	if got := connect(t, again).ask("echo again"); got != "again" {
		t.Errorf("the adopted clone answers %q", got)
	}
}

// TestAnotherVMTakesThePlaceOfOneThatHasEnded: in the same directory and under the same name, a clone, another
// clone, and a VM that boots.
func TestAnotherVMTakesThePlaceOfOneThatHasEnded(t *testing.T) {
	t.Parallel()
	d, s := New(Options{}), templateSpec(t)
	from := makeTemplate(t, d, s)
	s.Dir = filepath.Join(s.Dir, "place")
	if err := os.Mkdir(s.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, origin := range []hypervisor.Template{from, from, nil} {
		s.From = origin
		v, err := d.Start(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { killVM(t, v) })
		c := connect(t, v)
		if origin == nil {
			c.ready()
		}
		if got := c.ask("echo hello"); got != "hello" {
			t.Errorf("the VM answers %q", got)
		}
		c.conn.Close()
		killVM(t, v)
	}
}

func TestATemplateOfOtherContentsIsNotUsed(t *testing.T) {
	t.Parallel()
	d, s := New(Options{}), templateSpec(t)
	from := makeTemplate(t, d, s)
	for name, change := range map[string]func(*hypervisor.Spec){
		"image": func(s *hypervisor.Spec) {
			image, err := os.ReadFile(s.Image)
			if err != nil {
				t.Fatal(err)
			}
			image[len(image)-1]++ // also of the same length
			s.Image += ".other"
			if err := os.WriteFile(s.Image, image, 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"memory":       func(s *hypervisor.Spec) { s.MemoryBytes += 1 << 20 },
		"room":         func(s *hypervisor.Spec) { s.Max.MemoryBytes += growthBlock },
		"processors":   func(s *hypervisor.Spec) { s.VCPUs++ },
		"command line": func(s *hypervisor.Spec) { s.KernelArgs = append(s.KernelArgs, "lsm=selinux") },
	} {
		other := s
		change(&other)
		other.Dir, other.From = t.TempDir(), from
		v, err := d.Start(t.Context(), other)
		if err == nil {
			killVM(t, v)
		}
		if !errors.Is(err, hypervisor.ErrTemplateGone) {
			t.Errorf("with another %s the start says %v", name, err)
		}
	}
	same := s
	same.ID, same.Mergeable = "other", true
	if key, err := d.TemplateKey(t.Context(), same); err != nil || key != from.Key() {
		t.Errorf("what is the VM's own has changed the key: %v", err)
	}
	if err := from.Close(); err != nil {
		t.Error(err)
	}
	s.Dir, s.From = t.TempDir(), from
	if _, err := d.Start(t.Context(), s); !errors.Is(err, hypervisor.ErrTemplateGone) {
		t.Errorf("with a template that was given up the start says %v", err)
	}
}

// TestACloneNeverRunsWithAnImageReplacedWhileItStarts: after its files were looked at, and before the jail has bound them.
func TestACloneNeverRunsWithAnImageReplacedWhileItStarts(t *testing.T) {
	t.Parallel()
	d, s := New(Options{}), templateSpec(t)
	from := makeTemplate(t, d, s)
	s.From, s.Dir = from, filepath.Join(s.Dir, "c")
	if err := os.Mkdir(s.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	pid := 0
	s.Launched = func(rec hypervisor.Record) error { pid = rec.PID; return nil }
	o, err := d.cloned(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	defer o.close()
	image, err := os.ReadFile(s.Image)
	if err != nil {
		t.Fatal(err)
	}
	image[len(image)-1]++
	replaceFile(t, s.Image, image)
	v, err := d.start(t.Context(), s, o)
	if err == nil {
		t.Errorf("it goes on with the memory of the former image, and answers %q", connect(t, v).ask("echo hello"))
		killVM(t, v)
	} else if !errors.Is(err, hypervisor.ErrTemplateGone) {
		t.Errorf("the start says %v", err)
	}
	if _, err := hypervisor.FindProcess(pid); pid == 0 || !errors.Is(err, hypervisor.ErrGone) {
		t.Errorf("process %d is left: %v", pid, err)
	}
}

// TestAnotherZygoteLibraryMakesAnotherTemplate: it is what the jails of forked VMs are made by.
func TestAnotherZygoteLibraryMakesAnotherTemplate(t *testing.T) {
	t.Parallel()
	s := templateSpec(t)
	d := New(Options{Zygote: filepath.Join(t.TempDir(), Zygote)})
	keys := map[string]string{}
	for _, library := range []string{"", "one", "another"} {
		if library != "" {
			replaceFile(t, d.zygotes.path, []byte(library))
		}
		key, err := d.TemplateKey(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		if other, same := keys[key]; same {
			t.Errorf("with the library %q the key is that of %q", library, other)
		}
		keys[key] = library
		files, err := d.TemplateFiles(t.Context(), s)
		if err != nil || !slices.Contains(files, d.zygotes.path) {
			t.Errorf("nobody is told when the library %q changes: %v, %v", library, files, err)
		}
	}
	s.Accelerator = hypervisor.KVM // nothing is forked
	if files, err := d.TemplateFiles(t.Context(), s); err != nil || slices.Contains(files, d.zygotes.path) {
		t.Errorf("with KVM a template is made of %v, %v", files, err)
	}
}

// replaceFile is how packages do it.
func replaceFile(t *testing.T, path string, contents []byte) {
	t.Helper()
	if err := errors.Join(os.WriteFile(path+".new", contents, 0o600), os.Rename(path+".new", path)); err != nil {
		t.Fatal(err)
	}
}

func TestATemplateThatIsNeverReadyLeavesNothing(t *testing.T) {
	t.Parallel()
	d, s := New(Options{}), templateSpec(t)
	pid := 0
	s.Launched = func(rec hypervisor.Record) error { pid = rec.PID; return nil }
	never := errors.New("not ready")
	if _, err := d.MakeTemplate(t.Context(), s, func(context.Context, hypervisor.VM) error { return never }); !errors.Is(err, never) {
		t.Errorf("the making says %v", err)
	}
	if _, err := hypervisor.FindProcess(pid); !errors.Is(err, hypervisor.ErrGone) {
		t.Errorf("process %d is left: %v", pid, err)
	}
}

// changer is argv[0] of this program in a jail, with QEMU's rights.
const changer = "/change-template"

// changeTemplate does to the template on descriptor 4 what a QEMU that was taken over could try, and tells on
// descriptor 3 what succeeded.
func changeTemplate() {
	out := os.NewFile(3, "out")
	report := func(what string, err error) {
		if err == nil {
			fmt.Fprintln(out, what)
		}
	}
	again, err := unix.Open("/proc/self/fd/4", unix.O_RDWR, 0) // as QEMU does
	if err != nil {
		fmt.Fprintln(out, "opening it for writing is refused, which this test does not know")
	}
	for _, fd := range []int{4, again} {
		_, err = unix.Pwrite(fd, []byte("x"), 0)
		report("write", err)
		report("shorten", unix.Ftruncate(fd, 4096))
		report("lengthen", unix.Ftruncate(fd, 1<<40))
		report("punch a hole", unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096))
		report("zero", unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE, 0, 4096))
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, 0)
		report("change its seals", err)
		_, err = unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		report("map it shared for writing", err)
		if shared, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ, unix.MAP_SHARED); err == nil {
			report("make its mapping writable", unix.Mprotect(shared, unix.PROT_READ|unix.PROT_WRITE))
			report("remove pages by a mapping", unix.Madvise(shared, unix.MADV_REMOVE))
		}
	}
	own, err := unix.Mmap(again, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		fmt.Fprintln(out, "mapping it privately fails:", err)
	} else {
		own[0]++ // its own page
	}
	os.Exit(0)
}

func TestACloneCannotChangeItsTemplate(t *testing.T) {
	t.Parallel()
	d, s := New(Options{}), templateSpec(t)
	from := makeTemplate(t, d, s)
	sum := digestOf(t, from)
	files, err := from.(*template).open()
	if err != nil {
		t.Fatal(err)
	}
	defer files.close()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for what, file := range map[string]*os.File{"memory": files.memory, "state": files.state} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		c := jailConfig(s, []string{changer})
		c.Root = t.TempDir()
		c.Binds = append(c.Binds, jail.Bind{Source: self, Target: changer})
		p, err := jail.Start(t.Context(), c, []*os.File{w, file}, os.Stderr, nil)
		w.Close()
		if err != nil {
			t.Fatal(err)
		}
		done, readErr := io.ReadAll(r)
		r.Close()
		status, err := p.Wait()
		if err != nil || readErr != nil || !status.Success() {
			t.Fatal(status, err, readErr)
		}
		if len(done) > 0 {
			t.Errorf("with QEMU's rights, this can be done to the %s of a template:\n%s", what, done)
		}
	}
	if digestOf(t, from) != sum {
		t.Error("the template has changed")
	}
}

// TestAMonitorHasNothingWrittenToATemplate: what a monitor can have QEMU do with a file, through each descriptor
// of the template that a clone has.
func TestAMonitorHasNothingWrittenToATemplate(t *testing.T) {
	t.Parallel()
	d, s := New(Options{}), templateSpec(t)
	from := makeTemplate(t, d, s)
	sum := digestOf(t, from)
	v := clone(t, d, s, from, "c")
	c := connect(t, v)
	if got := c.ask("echo hello"); got != "hello" {
		t.Fatalf("the clone answers %q", got)
	}
	fds := fmt.Sprintf("/proc/%d/fd/", v.Record().PID)
	tried := 0
	for _, fd := range list(t, fds) {
		if to, err := os.Readlink(fds + fd); err != nil || !strings.HasPrefix(to, "/memfd:guest-") {
			continue
		}
		file := "/proc/self/fd/" + fd
		for command, args := range map[string]map[string]any{
			"pmemsave":          {"val": 0, "size": 4096, "filename": file},
			"memsave":           {"val": 0, "size": 4096, "filename": file, "cpu-index": 0},
			"dump-guest-memory": {"paging": false, "protocol": "file:" + file},
			"chardev-add":       {"id": "c" + fd, "backend": map[string]any{"type": "file", "data": map[string]any{"out": file}}},
			"object-add":        {"qom-type": "memory-backend-file", "id": "m" + fd, "size": 1 << 20, "mem-path": file, "share": true},
		} {
			tried++
			if err := v.(*vm).monitor.execute(t.Context(), command, args, nil); err == nil {
				t.Errorf("%s is done with descriptor %s", command, fd)
			}
		}
	}
	t.Logf("%d ways tried", tried)
	if digestOf(t, from) != sum {
		t.Error("the template has changed")
	}
	if got := c.ask("echo again"); got != "again" {
		t.Errorf("afterwards the clone answers %q", got)
	}
}

// digestOf is that of a template's memory.
func digestOf(t testing.TB, from hypervisor.Template) [sha256.Size]byte {
	t.Helper()
	files, err := from.(*template).open()
	if err != nil {
		t.Fatal(err)
	}
	defer files.close()
	h := sha256.New()
	if _, err := io.Copy(h, files.memory); err != nil {
		t.Fatal(err)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

func BenchmarkClone(b *testing.B) {
	d, s := New(Options{}), templateSpec(b)
	from := makeTemplate(b, d, s)
	i := 0
	for b.Loop() {
		i++
		v := clone(b, d, s, from, fmt.Sprint("c", i))
		if got := connect(b, v).ask("echo hello"); !strings.HasPrefix(got, "hello") {
			b.Fatal(got)
		}
		b.StopTimer()
		killVM(b, v)
		b.StartTimer()
	}
}
