// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"bulkhead/test/e2e/engine"
	"bulkhead/test/e2e/host"
)

// product is the name of the runtime in Docker's configuration.
const product = "bulkhead"

// installedRuntime is where the set-up files for engines expect the product.
const installedRuntime = "/usr/bin/bulkhead"

// setUpFile is a file that shows how to set up an engine.
func setUpFile(name string) string { return filepath.Join("../../deploy/engines", name) }

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
	ctr    *engine.Ctr
	podman *engine.Podman
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
	if started.podman != nil {
		errs = append(errs, started.podman.Stop())
	}
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
		h, err := ground.NewHost("e2e", host.Settings{MaxVMs: 200})
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

// dockerEngine is the Docker that tests use, with the product below it.
func dockerEngine(t *testing.T) *engine.Engine {
	t.Helper()
	started.mu.Lock()
	defer started.mu.Unlock()
	return dockerEngineLocked(t)
}

func dockerEngineLocked(t *testing.T) *engine.Engine {
	t.Helper()
	var config struct {
		Runtimes map[string]engine.Runtime `json:"runtimes"`
	}
	if !reference() {
		text, err := os.ReadFile(setUpFile("docker-daemon.json"))
		if err == nil {
			err = json.Unmarshal(text, &config)
		}
		if err != nil {
			t.Fatal(err)
		}
		expect(t, "the path in docker-daemon.json", config.Runtimes[product].Path, installedRuntime)
		config.Runtimes[product] = runtimeProgramLocked(t)
	}
	if started.engine == nil {
		e, err := engine.Start(t.Context(), ground, config.Runtimes)
		if err != nil {
			t.Fatal(err)
		}
		started.engine = e
	}
	logOnFailure(t, started.engine.Logs()...)
	return started.engine
}

// runtimeProgramLocked is the runtime under test, with the daemon it needs.
func runtimeProgramLocked(t *testing.T) engine.Runtime {
	t.Helper()
	if !reference() {
		h := sharedHostLocked(t)
		return engine.Runtime{Path: h.Binary("bulkhead"), Args: []string{"--config", h.Config}}
	}
	path, err := exec.LookPath(runtimeUnderTest())
	if err != nil {
		t.Fatal(err)
	}
	return engine.Runtime{Path: path}
}

// ctrClient is containerd's client below the same containerd as Docker's.
func ctrClient(t *testing.T) *engine.Ctr {
	t.Helper()
	started.mu.Lock()
	defer started.mu.Unlock()
	runtime, e := runtimeProgramLocked(t), dockerEngineLocked(t)
	if started.ctr == nil {
		c, err := e.NewCtr(within(t, commandTime), runtime)
		if err != nil {
			t.Fatal(err)
		}
		started.ctr = c
	}
	return started.ctr
}

// podmanEngine is the Podman that tests use.
func podmanEngine(t *testing.T) *engine.Podman {
	t.Helper()
	started.mu.Lock()
	defer started.mu.Unlock()
	runtime := runtimeProgramLocked(t)
	if started.podman == nil {
		setUp := engine.PodmanSetUp(runtimeUnderTest(), runtime.Path)
		if !reference() {
			text, err := os.ReadFile(setUpFile("containers.conf"))
			if err != nil {
				t.Fatal(err)
			}
			setUp = strings.ReplaceAll(string(text), installedRuntime, runtime.Path)
		}
		p, err := engine.NewPodman(within(t, commandTime), ground, runtimeUnderTest(), runtime, setUp)
		if err != nil {
			t.Fatal(err)
		}
		started.podman = p
	}
	return started.podman
}

// needsProduct skips what is not asked of a reference runtime.
func needsProduct(t *testing.T) {
	t.Helper()
	if reference() {
		t.Skipf("a promise of the product, not of %s", runtimeUnderTest())
	}
}
