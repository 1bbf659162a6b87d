// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package fake

import (
	"context"
	"fmt"
	"os"
	"sync"
	"syscall"

	"bulkhead/bus/stdio"

	"github.com/creack/pty"
)

// process is one script with its standard streams.
type process struct {
	container string
	execID    string
	channel   uint32
	pid       int32
	stream    *stdio.Process
	signals   chan int
	start     chan struct{} // closed when it may run
	starting  sync.Once
	done      chan struct{} // closed when it has ended and code is final
	cancel    context.CancelFunc

	mu     sync.Mutex
	code   int  // guarded by mu: set by a kill, else by the end
	killed bool // guarded by mu
	silent bool // guarded by mu: nobody is to be told of the end
}

// files are the process's ends of its streams.
type files struct {
	stdin, stdout, stderr *os.File
}

// close is done once by the process's end, which its readers see as the end of
// the stream.
func (f files) close() {
	f.stdin.Close()
	if f.stdout != f.stdin {
		f.stdout.Close()
		f.stderr.Close()
	}
}

// newProcess opens the streams of a process that runs when begin is called.
func (g *guest) newProcess(container, execID string, channel uint32, terminal bool, args, env []string) (*process, error) {
	g.mu.Lock()
	g.nextPID++
	p := &process{
		container: container, execID: execID, channel: channel, pid: g.nextPID,
		signals: make(chan int, 16), start: make(chan struct{}), done: make(chan struct{}),
	}
	g.mu.Unlock()
	own, theirs, err := openStreams(terminal)
	if err != nil {
		return nil, fmt.Errorf("opening the streams of a process: %w", err)
	}
	ctx, cancel := context.WithCancel(g.ctx)
	p.cancel = cancel
	theirs.Signal = p.signal
	theirs.Hangup = func() { p.signal(int(syscall.SIGHUP)) }
	if p.stream, err = g.endpoint.Open(channel, theirs); err != nil {
		cancel()
		own.close()
		return nil, fmt.Errorf("opening channel %d: %w", channel, err)
	}
	g.running.Go(func() {
		// A script that reads or writes when it is killed is woken by the close.
		stop := context.AfterFunc(ctx, own.close)
		code := p.run(ctx, g.script, own, args, env)
		if stop() {
			own.close()
		}
		if report := p.finish(code); report >= 0 && g.ctx.Err() == nil {
			p.stream.Exited(report, false)
			g.exited(container, execID, report)
		}
		close(p.done)
		cancel()
	})
	return p, nil
}

// openStreams makes the pipes, or the pseudo-terminal, of a process.
func openStreams(terminal bool) (own files, theirs stdio.Streams, err error) {
	if terminal {
		master, slave, err := pty.Open()
		if err != nil {
			return own, theirs, err
		}
		return files{slave, slave, slave}, stdio.Streams{Terminal: master}, nil
	}
	var opened []*os.File
	pipe := func() (r, w *os.File) {
		if err != nil {
			return nil, nil
		}
		if r, w, err = os.Pipe(); err == nil {
			opened = append(opened, r, w)
		}
		return r, w
	}
	own.stdin, theirs.Stdin = pipe()
	theirs.Stdout, own.stdout = pipe()
	theirs.Stderr, own.stderr = pipe()
	if err != nil {
		for _, f := range opened {
			f.Close()
		}
	}
	return own, theirs, err
}

// run waits for the start and runs the script. A signal that would end a
// program ends one that has not begun.
func (p *process) run(ctx context.Context, script Script, own files, args, env []string) int {
	select {
	case <-p.start:
	case n := <-p.signals:
		return 128 + n
	case <-ctx.Done():
		return 137
	}
	return script(ctx, Process{
		Container: p.container, ExecID: p.execID, Args: args, Env: env,
		Stdin: own.stdin, Stdout: own.stdout, Stderr: own.stderr, Signals: p.signals,
	})
}

// finish decides the code to report, negative for none.
func (p *process) finish(code int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.silent:
		return -1
	case !p.killed:
		p.code = code & 0xff
	}
	return p.code
}

// kill ends the process with code; 0 says that nobody is to be told.
func (p *process) kill(code int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.ended() {
		p.killed, p.code, p.silent = true, code, code == 0
	}
	p.cancel()
}

// signal never blocks: a script that takes none loses what exceeds the queue.
func (p *process) signal(n int) {
	if n == int(syscall.SIGKILL) {
		p.kill(128 + n)
		return
	}
	if n == 0 {
		return
	}
	select {
	case p.signals <- n:
	default:
	}
}

func (p *process) begin() { p.starting.Do(func() { close(p.start) }) }

func (p *process) begun() bool { return closed(p.start) }
func (p *process) ended() bool { return closed(p.done) }

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// exitCode is the code of an ended process.
func (p *process) exitCode() (code int, ended bool) {
	if !p.ended() {
		return 0, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.code, true
}
