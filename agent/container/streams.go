// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package container

import (
	"fmt"
	"os"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/utils"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Stdio is the agent's side of a process's standard streams. The receiver owns
// the files and closes them.
type Stdio struct {
	// Terminal is the master of the process's pty, or nil; then the other three are set.
	Terminal *os.File
	Stdin    *os.File // write end
	Stdout   *os.File // read end
	Stderr   *os.File // read end
	// Signal sends a signal to the process that came over the streams.
	Signal func(signal int) error
}

// Stream is the open channel of one process.
type Stream interface {
	// Exited says that the process ended. It returns at once; the code is delivered after
	// the output, as often as it takes.
	Exited(code int, oom bool)
}

// Streams opens the channel that the host gave a process.
type Streams interface {
	Open(channel uint32, s Stdio) (Stream, error)
}

// pipeSize is what is asked for each pipe: a writer that is briefly ahead of the
// link does not block.
const pipeSize = 1 << 20

// ends are the two sides of a process's streams while it is being started.
type ends struct {
	ours   Stdio
	theirs []*os.File
	socket *os.File // receives the pty's master
}

// openEnds makes pipes, or the socket over which a pty will come, and gives the
// process its side. libcontainer makes the process's user their owner, so that
// /dev/stdout can be reopened.
func openEnds(lp *libcontainer.Process, spec *specs.Process) (_ *ends, err error) {
	e := &ends{}
	defer func() {
		if err != nil {
			e.close()
		}
	}()
	if spec.Terminal {
		parent, child, err := utils.NewSockPair("console")
		if err != nil {
			return nil, fmt.Errorf("making the console's socket: %w", err)
		}
		e.socket, e.theirs = parent, []*os.File{child}
		lp.ConsoleSocket = child
		return e, nil
	}
	if e.ours.Stdin, lp.Stdin, err = e.inputPipe(); err != nil {
		return nil, err
	}
	if e.ours.Stdout, lp.Stdout, err = e.outputPipe(); err != nil {
		return nil, err
	}
	if e.ours.Stderr, lp.Stderr, err = e.outputPipe(); err != nil {
		return nil, err
	}
	return e, nil
}

// giveTo makes the process's user the owner of its pipes where libcontainer cannot: in
// a user namespace, which does not know their present owner.
func (e *ends) giveTo(config configs.Config, user specs.User) error {
	if !config.Namespaces.Contains(configs.NEWUSER) || e.socket != nil {
		return nil
	}
	uid, err := config.HostUID(int(user.UID))
	if err != nil {
		return fmt.Errorf("%w: process.user.uid %d: %w", ErrInvalid, user.UID, err)
	}
	gid, err := config.HostGID(int(user.GID))
	if err != nil {
		return fmt.Errorf("%w: process.user.gid %d: %w", ErrInvalid, user.GID, err)
	}
	for _, f := range e.theirs {
		if err := f.Chown(uid, gid); err != nil {
			return fmt.Errorf("giving a pipe to user %d: %w", uid, err)
		}
	}
	return nil
}

func (e *ends) inputPipe() (ours, theirs *os.File, err error) {
	r, w, err := bigPipe()
	if err != nil {
		return nil, nil, err
	}
	e.theirs = append(e.theirs, r)
	return w, r, nil
}

func (e *ends) outputPipe() (ours, theirs *os.File, err error) {
	r, w, err := bigPipe()
	if err != nil {
		return nil, nil, err
	}
	e.theirs = append(e.theirs, w)
	return r, w, nil
}

func bigPipe() (r, w *os.File, err error) {
	r, w, err = os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("making a pipe: %w", err)
	}
	// Over the limit of /proc/sys/fs/pipe-user-pages-soft the default size has to do.
	if raw, err := w.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, pipeSize) })
	}
	return r, w, nil
}

// started closes the process's side and takes the pty that its start sent.
func (e *ends) started() (Stdio, error) {
	for _, f := range e.theirs {
		_ = f.Close()
	}
	e.theirs = nil
	if e.socket != nil {
		master, err := receiveMaster(e.socket)
		_ = e.socket.Close()
		e.socket = nil
		if err != nil {
			return Stdio{}, err
		}
		e.ours.Terminal = master
	}
	return e.ours, nil
}

// receiveMaster reads the descriptor that libcontainer's init sent before its start
// completed; so it is there already, or never comes.
func receiveMaster(socket *os.File) (*os.File, error) {
	name := make([]byte, 4096)
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := unix.Recvmsg(int(socket.Fd()), name, oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	if err != nil {
		return nil, fmt.Errorf("receiving the pty: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("receiving the pty: %d control messages: %w", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("receiving the pty: %d descriptors: %w", len(fds), err)
	}
	// With O_NONBLOCK the runtime's poller serves the pty, so that closing it ends a read.
	if err := unix.SetNonblock(fds[0], true); err != nil {
		_ = unix.Close(fds[0])
		return nil, fmt.Errorf("receiving the pty: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), string(name[:n])), nil
}

// close gives up what a failed start left.
func (e *ends) close() {
	for _, f := range append(e.theirs, e.socket, e.ours.Terminal, e.ours.Stdin, e.ours.Stdout, e.ours.Stderr) {
		if f != nil {
			_ = f.Close()
		}
	}
}
