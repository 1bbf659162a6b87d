// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

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
			err = errors.Join(err, ground.KeepLogs())
		}
		err = errors.Join(err, janitor())
	}()
	code = m.Run()
	return code, errors.Join(tearDown(), ground.NothingLeft(links))
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
		errs = append(errs, started.host.NoRecords(), started.host.Stop())
	}
	return errors.Join(errs...)
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
