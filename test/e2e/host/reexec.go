// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package host

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
)

// reexecEnv tells a copy of the test binary which helper it is.
const reexecEnv = "BULKHEAD_E2E_HELPER"

// Main is called first in TestMain. It returns unless this process is a helper.
func Main() {
	role := os.Getenv(reexecEnv)
	if role == "" {
		return
	}
	err := os.Unsetenv(reexecEnv) // what the helper starts is none
	switch {
	case err != nil:
	case role == "monitor":
		err = monitorMain(os.Args[1], os.Args[2:])
	case role == "janitor":
		err = janitorMain(os.Args[1])
	default:
		err = fmt.Errorf("no helper %q", role)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e helper:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// helper is the command that runs this binary in a role.
func helper(role string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = "e2e-" + role
	cmd.Env = append(os.Environ(), reexecEnv+"="+role)
	return cmd
}

// reportFD is where a monitor writes what it saw.
const reportFD = 3

func report(f *os.File, value any) error { return json.NewEncoder(f).Encode(value) }
