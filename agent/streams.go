// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"

	"bulkhead/agent/container"
	"bulkhead/bus/link"
	"bulkhead/bus/stdio"
)

// streams lets the containers' processes use the endpoint.
type streams struct{ endpoint *stdio.Endpoint }

// Open implements container.Streams. A process that has ended cannot be
// signalled any more, which its relay learns by the exit that follows.
func (s streams) Open(channel uint32, io container.Stdio) (container.Stream, error) {
	return s.endpoint.Open(channel, stdio.Streams{
		Stdin: io.Stdin, Stdout: io.Stdout, Stderr: io.Stderr, Terminal: io.Terminal,
		Signal: func(n int) { _ = io.Signal(n) },
	})
}

// serveStreams moves standard streams over the host's sessions on the io port.
func (a *agent) serveStreams(ctx context.Context, io *link.Listener, endpoint *stdio.Endpoint) error {
	defer io.Close()
	for {
		session, err := io.Accept(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		if err := endpoint.Serve(ctx, session); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, link.ErrReset) && ctx.Err() == nil {
			a.log.Info("stream session ended, waiting for the host's next", "error", err)
		}
	}
}
