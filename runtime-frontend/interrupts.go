// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
)

// interrupts are the signals that a command gets. While it sets something up, SIGINT and SIGTERM ask it to
// end, so that what it did is undone first; once a process runs in the
// foreground, signals are the process's. None is lost between the two.
type interrupts struct {
	signals chan os.Signal
	quit    chan struct{}
	ended   chan struct{}
	cancel  context.CancelCauseFunc

	mu      sync.Mutex // guards the two below
	early   []unix.Signal
	forward func(unix.Signal)
}

// interruptible returns a context that such a signal ends. Call stop.
func interruptible(ctx context.Context) (context.Context, *interrupts) {
	ctx, cancel := context.WithCancelCause(ctx)
	i := &interrupts{signals: make(chan os.Signal, 64), quit: make(chan struct{}), ended: make(chan struct{}), cancel: cancel}
	signal.Notify(i.signals, unix.SIGINT, unix.SIGTERM)
	go i.run()
	return ctx, i
}

func (i *interrupts) run() {
	defer close(i.ended)
	for {
		select {
		case s := <-i.signals:
			if sig, ok := s.(unix.Signal); ok && forwarded(sig) {
				i.take(sig)
			}
		case <-i.quit:
			return
		}
	}
}

func (i *interrupts) take(sig unix.Signal) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.forward != nil {
		i.forward(sig)
		return
	}
	i.early = append(i.early, sig)
	i.cancel(fmt.Errorf("%w by %s", errInterrupted, unix.SignalName(sig)))
}

// forwardTo passes every signal on from here, beginning with those that came
// too late to end the setting up.
func (i *interrupts) forwardTo(forward func(unix.Signal)) {
	signal.Notify(i.signals)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.forward = forward
	for _, sig := range i.early {
		forward(sig)
	}
	i.early = nil
}

// stop gives signals their ordinary meaning back.
func (i *interrupts) stop() {
	signal.Stop(i.signals)
	close(i.quit)
	<-i.ended
	i.cancel(context.Canceled)
}

var errInterrupted = errors.New("interrupted")

// interrupted prefers the signal to what it caused.
func interrupted(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, errInterrupted) {
		return fmt.Errorf("%w, and what was done is undone", cause)
	}
	return err
}

// forwarded excludes the signals that are news about us: our children, the Go
// scheduler's own, our terminal's size, and job control's, which would stop the relay and not the container.
func forwarded(sig unix.Signal) bool {
	switch sig {
	case unix.SIGCHLD, unix.SIGURG, unix.SIGPIPE, unix.SIGTTIN, unix.SIGTTOU, unix.SIGWINCH:
		return false
	}
	return true
}
