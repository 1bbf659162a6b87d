// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/runtime-frontend/bundle"
)

// execProcess is the process that an exec asks for: that of --process, or the
// container's own with the arguments and flags of the command line.
func execProcess(ctx context.Context, inv *invocation, ref *vmv1.ContainerRef) (*specs.Process, error) {
	opts, err := inv.bundleOptions()
	if err != nil {
		return nil, err
	}
	if path := inv.String("process"); path != "" {
		if err := alone(inv); err != nil {
			return nil, err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("reading the process: %w", err)
		}
		var process *specs.Process
		if err := json.Unmarshal(text, &process); err != nil {
			return nil, fmt.Errorf("%q is not a process: %w", path, err)
		}
		return bundle.ProcessForGuest(process, opts)
	}
	args := inv.Args().Tail()
	if len(args) == 0 {
		return nil, errors.New("exec args cannot be empty: name a program, or a --process file")
	}
	reply, err := call[vmv1.ConfigReply](ctx, inv, "config", &vmv1.ConfigRequest{Ref: ref})
	if err != nil {
		return nil, orNotFound(err)
	}
	process, err := bundle.ReadProcess(reply.GetConfig())
	if err != nil {
		return nil, err
	}
	process.Args = args
	process.Terminal = inv.Bool("tty")
	process.Env = append(process.Env, inv.StringSlice("env")...)
	if cwd := inv.String("cwd"); cwd != "" {
		process.Cwd = cwd
	}
	if profile := inv.String("apparmor"); profile != "" {
		process.ApparmorProfile = profile
	}
	if label := inv.String("process-label"); label != "" {
		process.SelinuxLabel = label
	}
	if inv.IsSet("no-new-privs") {
		process.NoNewPrivileges = inv.Bool("no-new-privs")
	}
	addCapabilities(process, inv.StringSlice("cap"))
	if err := setUser(&process.User, inv.String("user")); err != nil {
		return nil, err
	}
	for _, gid := range inv.Int64Slice("additional-gids") {
		if gid < 0 || gid >= 1<<32-1 {
			return nil, fmt.Errorf("--additional-gids %d is not a group id", gid)
		}
		process.User.AdditionalGids = append(process.User.AdditionalGids, uint32(gid))
	}
	return bundle.ProcessForGuest(process, opts)
}

// alone refuses what a --process file says already, and what would be dropped beside it. --tty is what conmon adds to
// a file that says the same.
func alone(inv *invocation) error {
	for _, flag := range []string{"env", "user", "additional-gids", "cwd", "process-label", "apparmor", "no-new-privs", "cap"} {
		if inv.IsSet(flag) {
			return fmt.Errorf("--%s beside --process: the file says all of the process; write it there", flag)
		}
	}
	if inv.Args().Len() > 1 {
		return fmt.Errorf("%q beside --process: the file says what to run", inv.Args().Get(1))
	}
	return nil
}

// addCapabilities follows runc: ambient ones need inheritable ones, which
// --cap does not give.
func addCapabilities(process *specs.Process, names []string) {
	if len(names) == 0 {
		return
	}
	if process.Capabilities == nil {
		process.Capabilities = &specs.LinuxCapabilities{}
	}
	c := process.Capabilities
	c.Bounding = append(c.Bounding, names...)
	c.Effective = append(c.Effective, names...)
	c.Permitted = append(c.Permitted, names...)
	if c.Inheritable != nil {
		c.Ambient = append(c.Ambient, names...)
	}
}

// setUser reads UID[:GID].
func setUser(user *specs.User, text string) error {
	if text == "" {
		return nil
	}
	uid, gid, both := strings.Cut(text, ":")
	n, err := strconv.ParseUint(uid, 10, 32)
	if err != nil {
		return fmt.Errorf("--user %q: %q is not a user id", text, uid)
	}
	user.UID = uint32(n)
	if !both {
		return nil
	}
	if n, err = strconv.ParseUint(gid, 10, 32); err != nil {
		return fmt.Errorf("--user %q: %q is not a group id", text, gid)
	}
	user.GID = uint32(n)
	return nil
}
