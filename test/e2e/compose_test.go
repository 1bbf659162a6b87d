// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"bulkhead/test/e2e/engine"
)

// composePath is Debian's docker-compose.
const composePath = "/usr/bin/docker-compose"

const composeFile = `version: "2.4"
services:
  writer:
    image: %[1]s
    runtime: %[2]s
    network_mode: none
    volumes: [shared:/shared]
    command: ["sh", "-c", "echo from $$HOSTNAME > /shared/letter; echo written; exec sleep 1000"]
    hostname: writer
    cpus: 0.5
    mem_limit: 128m
  reader:
    image: %[1]s
    runtime: %[2]s
    network_mode: none
    volumes: [shared:/shared:ro]
    command: ["sh", "-c", "until cat /shared/letter 2> /dev/null; do sleep 0.1; done; exec sleep 1000"]
    depends_on: [writer]
    environment: [EMPTY=, GREETING=hello]
volumes:
  shared: {}
`

func TestAComposeFileOfTwoServicesRuns(t *testing.T) {
	t.Parallel()
	d := newDocker(t)
	file := filepath.Join(t.TempDir(), "compose.yml")
	write(t, file, fmt.Sprintf(composeFile, engine.Image, runtimeUnderTest()))
	project := strings.ReplaceAll(newID("compose"), "-", "")
	c := client{t, func(args ...string) []string {
		return append([]string{composePath, "--project-name", project, "--file", file}, args...)
	}, d.engine.Env()}
	t.Cleanup(func() { c.cleanUp(nil, "down", "--volumes", "--timeout", "0") })

	c.do("up", "--detach")
	must(t, launchTime, func() error {
		if log := c.do("logs", "--no-color"); !strings.Contains(log, "written") || !strings.Contains(log, "| from writer") {
			return fmt.Errorf("the log is %q", log)
		}
		return nil
	})
	expect(t, "the output of an exec", c.do("exec", "-T", "reader", "sh", "-c", `echo "$GREETING,$EMPTY,${UNSET-unset}"`), "hello,,unset")
	c.do("up", "--detach", "--scale", "reader=2")
	running := func() int { return len(strings.Fields(d.do("ps", "-q", "--filter", "name="+project))) }
	expect(t, "the number of containers", running(), 3)
	c.do("restart", "--timeout", "0", "writer")
	expect(t, "the number of containers after a restart", running(), 3)
	c.do("down", "--volumes", "--timeout", "0")
	for _, what := range []string{"ps -aq", "volume ls -q", "network ls -q"} {
		if left := d.do(append(strings.Fields(what), "--filter", "name="+project)...); left != "" {
			t.Errorf("docker-compose down left %s: %s", what, left)
		}
	}
}
