// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package standalone

import (
	"net"
	"os"
)

// notifyReady tells the service manager that the service answers, as
// sd_notify(3) describes. Without a manager that listens it does nothing.
func notifyReady() {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	if path[0] == '@' { // an abstract socket
		path = "\x00" + path[1:]
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return // the manager went away; the service serves on
	}
	defer conn.Close()
	_, _ = conn.Write([]byte("READY=1"))
}
