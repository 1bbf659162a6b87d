// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"bulkhead/test/e2e/engine"
)

// threeTiers is three services of which each knows the next one by its name. All
// serve their own host name by HTTP; web and app do so once they have read that of
// the next.
const threeTiers = `version: "2.4"
x-tier: &tier
  image: %[1]s
  runtime: %[2]s
  volumes: ["%[3]s:/bin/netprobe:ro"]
  dns: [127.0.0.1] # nobody: what Docker does not know is known to be nowhere at once
services:
  web:
    <<: *tier
    depends_on: [app]
    hostname: web
    networks: [front]
    ports: ["127.0.0.1:17200:7001"]
    command: ["sh", "-c", "until netprobe -limit 5s get app:7001 2> /dev/null; do sleep 0.2; done; exec netprobe serve :7000"]
  app:
    <<: *tier
    depends_on: [db]
    hostname: app
    networks: [front, back]
    command: ["sh", "-c", "until netprobe -limit 5s get db:7001 2> /dev/null; do sleep 0.2; done; exec netprobe serve :7000"]
  db:
    <<: *tier
    hostname: db
    networks: {back: {aliases: [storage]}}
    command: ["netprobe", "serve", ":7000"]
networks:
  front: {}
  back: {internal: true}
`

func TestThreeComposeServicesFindEachOther(t *testing.T) {
	t.Parallel()
	d := newDocker(t)
	file := filepath.Join(t.TempDir(), "compose.yml")
	write(t, file, fmt.Sprintf(threeTiers, engine.Image, runtimeUnderTest(), probeProgram(t)))
	project := strings.ReplaceAll(newID("tiers"), "-", "")
	c := client{t, func(args ...string) []string {
		return append([]string{composePath, "--project-name", project, "--file", file}, args...)
	}, d.engine.Env()}
	t.Cleanup(func() { c.cleanUp(nil, "down", "--timeout", "0") })

	c.do("up", "--detach")
	web := http.Client{Transport: &http.Transport{DialContext: d.engine.Net.Dial}}
	defer web.CloseIdleConnections()
	must(t, launchTime, func() error {
		reply, err := web.Get("http://127.0.0.1:17200/")
		if err != nil {
			return fmt.Errorf("%w; the log is %s", err, c.do("logs", "--no-color"))
		}
		defer reply.Body.Close()
		if text, err := io.ReadAll(reply.Body); err != nil || string(text) != "web\n" {
			return fmt.Errorf("the published port says %q: %w; the log is %s", text, err, c.do("logs", "--no-color"))
		}
		return nil
	})
	for service, next := range map[string]string{"web": "app", "app": "db"} {
		if log := c.do("logs", "--no-color", service); !strings.Contains(log, `| "`+next+`"`) {
			t.Errorf("the log of %s is %q: it has not read the name of %s", service, log, next)
		}
	}
	expect(t, "what is read by an alias", c.do("exec", "-T", "app", "netprobe", "get", "storage:7001"), `"db"`)
	if out := c.try("exec", "-T", "web", "netprobe", "-limit", "5s", "get", "db:7001"); out.Code == 0 {
		t.Errorf("web reaches db, with which it shares no network: %q", out.Stdout)
	}
	c.do("restart", "--timeout", "0", "app")
	must(t, launchTime, func() error {
		if r := c.try("exec", "-T", "web", "netprobe", "-limit", "5s", "get", "app:7001"); r.Stdout != "\"app\"\n" {
			return fmt.Errorf("after a restart web reads %q: %s", r.Stdout, r.Stderr)
		}
		return nil
	})
	c.do("down", "--timeout", "0")
	expect(t, "the networks that docker-compose left", d.do("network", "ls", "-q", "--filter", "name="+project), "")
}
