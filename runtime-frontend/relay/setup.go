// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"errors"
	"strconv"
	"strings"
)

// Descriptors the relay is started with, besides 0, 1 and 2.
const (
	ControlFD  = 3 // SOCK_SEQPACKET to the frontend
	RelayDirFD = 4 // directory the socket is made in
	MountNSFD  = 5 // mount namespace to join, if Setup.JoinMount
)

// Words on the control socket. The frontend first sends an encoded Setup; the
// relay answers Ready, or a sentence of failure and ends. With Setup.Pause it says
// Mounted first, and goes on with Proceed. Commit makes it
// outlive the frontend; until then the end of the socket is its end.
const (
	Mounted = "mounted"
	Proceed = "proceed"
	Ready   = "ready"
	Commit  = "commit"
)

// maxSetup bounds an encoded Setup.
const maxSetup = 128 << 10

// Mount is a directory or file of the host shown in the relay's mount namespace.
type Mount struct {
	Source      string
	Destination string // below the root file system
	ReadOnly    bool
}

// Setup is what the relay does to itself before it is ready.
type Setup struct {
	Socket      string // file name below the relay directory
	Terminal    bool   // descriptors 0, 1, 2 are the slave of a pty and the controlling terminal
	Init        bool   // it is PID 1 of its PID namespace
	Rootfs      string // new root of its own new mount namespace; empty: leave the mounts
	ReadOnly    bool   // make Rootfs read-only
	Mounts      []Mount
	Pause       bool   // wait for Proceed before the root changes: hooks run there
	JoinMount   bool   // enter the mount namespace at MountNSFD
	Hostname    string // empty: leave
	NewCgroupNS bool   // leave for a cgroup namespace when the worker first attaches
	OOMScoreAdj *int
}

// Encode returns s as text, one NUL-ended field after the other.
func (s Setup) Encode() ([]byte, error) {
	var b []byte
	bad := false
	add := func(key, value string) {
		bad = bad || strings.IndexByte(value, 0) >= 0
		b = append(append(append(append(b, key...), '='), value...), 0)
	}
	flag := func(key string, set bool) {
		if set {
			add(key, "1")
		}
	}
	add("socket", s.Socket)
	flag("terminal", s.Terminal)
	flag("init", s.Init)
	add("rootfs", s.Rootfs)
	flag("readonly", s.ReadOnly)
	for _, m := range s.Mounts {
		add("source", m.Source)
		add("destination", m.Destination)
		flag("mount-readonly", m.ReadOnly)
	}
	flag("pause", s.Pause)
	flag("join-mount", s.JoinMount)
	add("hostname", s.Hostname)
	flag("cgroup-ns", s.NewCgroupNS)
	if s.OOMScoreAdj != nil {
		add("oom-score-adj", strconv.Itoa(*s.OOMScoreAdj))
	}
	if bad {
		return nil, errors.New("the relay's setup holds a NUL byte")
	}
	if len(b) > maxSetup {
		return nil, errors.New("the relay's setup is longer than " + strconv.Itoa(maxSetup) + " bytes")
	}
	return b, nil
}

// decodeSetup is the reverse of Encode.
func decodeSetup(text string) (Setup, error) {
	var s Setup
	for len(text) > 0 {
		field, rest, _ := strings.Cut(text, "\x00")
		text = rest
		key, value, _ := strings.Cut(field, "=")
		last := len(s.Mounts) - 1
		switch key {
		case "socket":
			s.Socket = value
		case "terminal":
			s.Terminal = true
		case "init":
			s.Init = true
		case "rootfs":
			s.Rootfs = value
		case "readonly":
			s.ReadOnly = true
		case "source":
			s.Mounts = append(s.Mounts, Mount{Source: value})
		case "pause":
			s.Pause = true
		case "join-mount":
			s.JoinMount = true
		case "hostname":
			s.Hostname = value
		case "cgroup-ns":
			s.NewCgroupNS = true
		case "oom-score-adj":
			n, err := strconv.Atoi(value)
			if err != nil {
				return Setup{}, err
			}
			s.OOMScoreAdj = &n
		case "destination", "mount-readonly":
			if last < 0 {
				return Setup{}, errors.New("setup field " + key + " without a source")
			}
			if key == "destination" {
				s.Mounts[last].Destination = value
			} else {
				s.Mounts[last].ReadOnly = true
			}
		default:
			return Setup{}, errors.New("unknown setup field " + key)
		}
	}
	if s.Socket == "" || strings.Contains(s.Socket, "/") {
		return Setup{}, errors.New("the setup names no socket")
	}
	return s, nil
}
