// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"testing"
)

// ctr has CNI wire up the namespace between create and start, as Docker does from
// version 28 on.
func TestACtrContainerHasItsNetworkOfCNI(t *testing.T) {
	t.Parallel()
	c := newCtr(t)
	serveIn(t, dockerEngine(t).Net)
	name := newID("ctr")
	mount := "type=bind,src=" + probeProgram(t) + ",dst=/bin/netprobe,options=rbind:ro"
	argv, err := c.ctr.CNIArgs(c.ctr.RunArgs(opts("--rm", "--cni", "--mount", mount), name, "sh", "-c", `
ip -o -4 addr show dev eth0 | awk '{print $4}' | cut -d . -f 1-2
ip -o -6 addr show dev eth0 scope global | awk '{print $4}' | cut -d : -f 1-2
`+wayOut+`
ping -c 1 -W 60 10.86.0.1 > /dev/null && netprobe -bytes 1000000 upload 10.86.0.1:7000 > /dev/null && echo reached`)...)
	if err != nil {
		t.Fatal(err)
	}
	out := client{t, func(...string) []string { return argv }, nil}.do()
	expect(t, "what the container says", out, "10.86\nfd10:86\n10.86.0.1 eth0\nreached")
}
