// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"bulkhead/bus"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/test/e2e/engine"
	"bulkhead/test/e2e/host"
)

// product is the name of the runtime in Docker's configuration.
const product = "bulkhead"

// runtimeUnderTest is the runtime that tests of Docker use.
var runtimeUnderTest = sync.OnceValue(func() string {
	if name := os.Getenv("BULKHEAD_E2E_RUNTIME"); name != "" {
		return name
	}
	return product
})

// reference tells that a reference runtime takes the product's place.
func reference() bool { return runtimeUnderTest() != product }

// ground is where all tests stand; set before the first.
var ground *host.Ground

// started is what was started for all tests, when a first test asked for it.
var started struct {
	mu     sync.Mutex // guards the rest
	host   *host.Host
	engine *engine.Engine
}

func TestMain(m *testing.M) {
	host.Main()
	code, err := suite(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "FAIL: e2e:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func suite(m *testing.M) (code int, err error) {
	if os.Geteuid() != 0 {
		return 1, errors.New("run it as root: containers need mounts and cgroups")
	}
	build := ""
	if !reference() {
		build = buildDirectory()
	}
	links, err := host.Links()
	if err != nil {
		return 1, err
	}
	ground, err = host.NewGround(build)
	if err != nil {
		return 1, err
	}
	janitor, err := ground.StartJanitor()
	if err != nil {
		return 1, errors.Join(err, ground.Remove())
	}
	defer func() {
		if code != 0 || err != nil {
			err = errors.Join(err, keepLogs())
		}
		err = errors.Join(err, janitor())
	}()
	code = m.Run()
	return code, errors.Join(tearDown(), nothingLeft(links))
}

// keepLogs saves the daemons' logs of a run that failed.
func keepLogs() error {
	logs, err := filepath.Glob(filepath.Join(ground.Dir, "*", "*.log"))
	if err != nil || len(logs) == 0 {
		return err
	}
	dir := filepath.Join(os.TempDir(), ground.Token+"-logs")
	for _, path := range logs {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name := filepath.Join(dir, filepath.Base(filepath.Dir(path))+"-"+filepath.Base(path))
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(name, text, 0o644)); err != nil {
			return err
		}
	}
	fmt.Fprintln(os.Stderr, "e2e: the daemons' logs are kept in", dir)
	return nil
}

func buildDirectory() string {
	build := os.Getenv("BULKHEAD_BUILD")
	if build == "" {
		build = "../../build"
	}
	abs, err := filepath.Abs(build)
	if err != nil {
		return build
	}
	return abs
}

// tearDown ends what was started for all tests.
func tearDown() error {
	started.mu.Lock()
	defer started.mu.Unlock()
	var errs []error
	if started.engine != nil {
		errs = append(errs, started.engine.Stop())
	}
	if started.host != nil {
		errs = append(errs, noRecords(started.host), started.host.Stop())
	}
	return errors.Join(errs...)
}

// nothingLeft gives what has just been killed moments to go, and then complains.
func nothingLeft(links []string) error {
	const patience, pause = 10 * time.Second, 100 * time.Millisecond
	for deadline := time.Now().Add(patience); ; time.Sleep(pause) {
		left, err := ground.Left(links)
		if err != nil {
			return err
		}
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("left behind after %s:\n  %s", patience, strings.Join(left, "\n  "))
		}
	}
}

// noRecords complains of containers and VMs that a host still knows.
func noRecords(h *host.Host) error {
	ctx, cancel := context.WithTimeout(context.Background(), commandTime)
	defer cancel()
	return eventually(ctx, func() error {
		conn, err := h.Dial(ctx)
		if err != nil {
			return err
		}
		defer conn.Close()
		list, err := bus.Call[vmv1.ListReply](ctx, conn, conn.Subject("vm", "list"), &vmv1.ListRequest{})
		if err != nil {
			return err
		}
		for _, bucket := range []string{bus.BucketContainers, bus.BucketSandboxes} {
			kv, err := conn.JetStream().KeyValue(ctx, bucket)
			if err != nil {
				return err
			}
			keys, err := kv.ListKeys(ctx)
			if err != nil {
				return err
			}
			for key := range keys.Keys() {
				return fmt.Errorf("record %s/%s is left", bucket, key)
			}
		}
		if n, m := len(list.GetContainers()), len(list.GetSandboxes()); n+m > 0 {
			return fmt.Errorf("host %s still lists %d containers and %d VMs: %v", h.ID, n, m, list)
		}
		return nil
	})
}

// sharedHost is the daemon that most tests use.
func sharedHost(t *testing.T) *host.Host {
	t.Helper()
	needsProduct(t)
	started.mu.Lock()
	defer started.mu.Unlock()
	return sharedHostLocked(t)
}

func sharedHostLocked(t *testing.T) *host.Host {
	t.Helper()
	if started.host == nil {
		h, err := ground.NewHost("e2e", host.Settings{MaxVMs: 32})
		if err != nil {
			t.Fatal(err)
		}
		if err := h.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		started.host = h
	}
	logOnFailure(t, started.host.Log())
	return started.host
}

// docker is the Docker that tests use, with the product below it.
func dockerEngine(t *testing.T) *engine.Engine {
	t.Helper()
	started.mu.Lock()
	defer started.mu.Unlock()
	runtimes := map[string]engine.Runtime{}
	if !reference() {
		h := sharedHostLocked(t)
		runtimes[product] = engine.Runtime{Path: h.Binary("bulkhead"), Args: []string{"--config", h.Config}}
	}
	if started.engine == nil {
		e, err := engine.Start(t.Context(), ground, runtimes)
		if err != nil {
			t.Fatal(err)
		}
		started.engine = e
	}
	logOnFailure(t, started.engine.Logs()...)
	return started.engine
}

// needsProduct skips what is not asked of a reference runtime.
func needsProduct(t *testing.T) {
	t.Helper()
	if reference() {
		t.Skipf("a promise of the product, not of %s", runtimeUnderTest())
	}
}
