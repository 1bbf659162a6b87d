// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package shadow

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// console is a pty: the slave for the relay, the master for the engine or for Proxy.
type console struct {
	name          string
	socket        string
	master, slave *os.File
}

// newConsole opens a pty with a raw slave: the line discipline is the guest's.
func newConsole(t Terminal) (_ *console, retErr error) {
	if (t.ConsoleSocket == "") != t.Foreground {
		return nil, errors.New("a terminal needs either a console socket or a caller in the foreground")
	}
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("opening a pty: %w", err)
	}
	c := &console{master: os.NewFile(uintptr(fd), "pty master"), socket: t.ConsoleSocket}
	defer func() {
		if retErr != nil {
			c.close()
		}
	}()
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		return nil, fmt.Errorf("asking for the pty's number: %w", err)
	}
	c.name = "/dev/pts/" + strconv.Itoa(n)
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, fmt.Errorf("unlocking the pty %s: %w", c.name, err)
	}
	// TIOCGPTPEER opens the right slave whatever is mounted at /dev/pts.
	slave, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return nil, fmt.Errorf("opening the slave of %s: %w", c.name, errno)
	}
	c.slave = os.NewFile(slave, c.name)
	if _, err := makeRaw(int(slave)); err != nil {
		return nil, fmt.Errorf("making %s raw: %w", c.name, err)
	}
	if t.Width != 0 || t.Height != 0 {
		size := &unix.Winsize{Row: t.Height, Col: t.Width}
		if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, size); err != nil {
			return nil, fmt.Errorf("setting the size of %s: %w", c.name, err)
		}
	}
	return c, nil
}

func (c *console) closeSlave() {
	if c.slave != nil {
		c.slave.Close()
		c.slave = nil
	}
}

func (c *console) close() {
	c.closeSlave()
	if c.master != nil {
		c.master.Close()
		c.master = nil
	}
}

// makeRaw is cfmakeraw(3); it returns what was before.
func makeRaw(fd int) (*unix.Termios, error) {
	old, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, err
	}
	raw := *old
	raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	raw.Oflag &^= unix.OPOST
	raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	raw.Cflag = raw.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	return old, unix.IoctlSetTermios(fd, unix.TCSETS, &raw)
}

// SendConsole sends the pty's master to the console socket, in one message
// with the pty's name and exactly one descriptor, and closes it. It waits for
// no answer: the engine may accept only after the command has ended.
func (r *Relay) SendConsole() error {
	c := r.console
	if c == nil || c.socket == "" || c.master == nil {
		return errors.New("sending the console: there is no console to send")
	}
	if err := sendMaster(c); err != nil {
		return fmt.Errorf("sending the console to %s: %w", c.socket, err)
	}
	c.close()
	return nil
}

func sendMaster(c *console) error {
	path := c.socket
	if len(path) >= 108 {
		// sun_path is short; a path through an open directory is not.
		dir, err := os.OpenFile(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer dir.Close()
		path = fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		return err
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return err
	}
	master, err := blocking(c.master)
	if err != nil {
		return err
	}
	return unix.Sendmsg(fd, []byte(c.name), unix.UnixRights(master), nil, unix.MSG_NOSIGNAL)
}

// blocking returns the descriptor of f in blocking mode, as receivers expect it.
func blocking(f *os.File) (int, error) {
	fd := int(f.Fd())
	return fd, unix.SetNonblock(fd, false)
}

// Proxy moves bytes between the caller's own terminal and a relay in the
// foreground until the relay is gone or ctx ends. The caller's terminal is raw meanwhile
// and as before afterwards.
func (r *Relay) Proxy(ctx context.Context, in, out *os.File) error {
	c := r.console
	if c == nil || c.master == nil {
		return errors.New("running in the foreground: the relay has no terminal")
	}
	if old, err := makeRaw(int(in.Fd())); err == nil {
		defer func() { _ = unix.IoctlSetTermios(int(in.Fd()), unix.TCSETS, old) }()
	}
	resize := make(chan os.Signal, 1)
	signal.Notify(resize, unix.SIGWINCH)
	defer signal.Stop(resize)
	follow := func() {
		if ws, err := unix.IoctlGetWinsize(int(in.Fd()), unix.TIOCGWINSZ); err == nil {
			setSize(c.master, ws)
		}
	}
	follow()

	wakeR, wakeW, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("running in the foreground: %w", err)
	}
	var movers sync.WaitGroup
	movers.Add(1)
	go func() {
		defer movers.Done()
		moveInput(in, wakeR, c.master)
	}()
	outDone := make(chan error, 1)
	go func() {
		outDone <- copyOutput(out, c.master)
	}()
	defer func() {
		wakeW.Close()
		movers.Wait()
		wakeR.Close()
	}()
	for {
		select {
		case <-resize:
			follow()
		case err := <-outDone:
			if errors.Is(err, unix.EIO) { // the relay, the last on the slave, is gone
				return nil
			}
			return err
		case <-ctx.Done():
			c.close()
			<-outDone //nolint:errcheck // it ends because of the close above
			return ctx.Err()
		}
	}
}

// moveInput copies from in, whose mode is not ours to change, until wake ends.
func moveInput(in, wake, master *os.File) {
	buf := make([]byte, 4096)
	fds := []unix.PollFd{{Fd: int32(in.Fd()), Events: unix.POLLIN}, {Fd: int32(wake.Fd()), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return
		} else if err != nil {
			continue
		}
		if fds[1].Revents != 0 {
			return
		}
		n, err := unix.Read(int(fds[0].Fd), buf)
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		if n <= 0 {
			// A file or a pipe ends; a terminal has no end but this character, which
			// the guest's line discipline turns into one (termios(3), VEOF).
			_, _ = master.Write([]byte{endOfTransmission})
			return
		}
		if _, err := master.Write(buf[:n]); err != nil {
			return
		}
	}
}

// endOfTransmission is ^D.
const endOfTransmission = 4

func setSize(master *os.File, ws *unix.Winsize) {
	raw, err := master.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) { _ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, ws) })
}
