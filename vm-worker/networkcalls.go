// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"bulkhead/bus"
	agentv1 "bulkhead/proto/agent/v1"
	netv1 "bulkhead/proto/net/v1"
	"bulkhead/vm-worker/hypervisor"
)

const (
	// netTime bounds a request to the net service that has nothing long to do.
	netTime = 10 * time.Second
	// refreshTime bounds what the start of a container waits for its network.
	refreshTime = 20 * time.Second
	// syncTime bounds one change of a running VM's network.
	syncTime = 40 * time.Second
)

// callNet asks the net service of this host.
func callNet[Resp any, PResp interface {
	*Resp
	proto.Message
}](ctx context.Context, w *Worker, method string, req proto.Message) (PResp, error) {
	return bus.Call[Resp, PResp](ctx, w.conn, w.conn.Subject("net", method), req)
}

func (w *Worker) detachNetwork(ctx context.Context, sandbox string) error {
	_, err := callNet[netv1.DetachReply](ctx, w, "detach", &netv1.DetachRequest{Sandbox: sandbox})
	if bus.ReasonOf(err) == bus.NotFound {
		return nil
	}
	return err
}

// cardTime bounds the wait for a guest that has to find its network cards and to
// set them up.
const cardTime = 30 * time.Second

// agentNetwork gives the guest its network.
func (s *sandbox) agentNetwork(ctx context.Context, req *agentv1.NetworkRequest) (*agentv1.NetworkReply, error) {
	ctx, cancel := context.WithTimeout(ctx, cardTime)
	defer cancel()
	return callAgent[agentv1.NetworkReply](ctx, s, "network", req)
}

// networkOf names the network namespace that a container's relay stands in.
func networkOf(relay *hostProcess, startTime uint64) (*netv1.Namespace, error) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/"+itoa(relay.pid)+"/ns/net", &st); err != nil {
		return nil, fmt.Errorf("look at the network namespace of the container's relay: %w", hypervisor.ErrGone)
	}
	return &netv1.Namespace{Pid: int32(relay.pid), StartTime: startTime, Device: st.Dev, Inode: st.Ino}, nil
}

// fallbackDevices appear in every new network namespace of a host that has the
// tunnel modules loaded; nobody put them there.
var fallbackDevices = []string{
	"lo", "tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0",
}

// firstInterface names an interface of a process's network namespace that somebody
// has put there; it is empty when there is none.
func firstInterface(pid int32) (string, error) {
	f, err := os.Open("/proc/" + itoa(pid) + "/net/dev")
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("look into the container's network namespace: %w", hypervisor.ErrGone)
	}
	if err != nil {
		return "", fmt.Errorf("look into the container's network namespace: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		name, _, isDevice := strings.Cut(strings.TrimSpace(lines.Text()), ":")
		if isDevice && !slices.Contains(fallbackDevices, name) {
			return name, nil
		}
	}
	if err := lines.Err(); err != nil {
		return "", fmt.Errorf("look into the container's network namespace: %w", err)
	}
	return "", nil
}

// uptimeNanos is the host's clock that nobody sets and that every worker shares.
func uptimeNanos() uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0 // it has no error but a bad address
	}
	return uint64(ts.Nano())
}
