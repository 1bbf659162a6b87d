// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"fmt"
	"strings"
	"sync"
)

// Output collects what a process writes and lets a test wait for a part of it.
type Output struct {
	mu      sync.Mutex // guards text and changed
	text    strings.Builder
	changed chan struct{} // closed and replaced at each write
}

// NewOutput is an empty one.
func NewOutput() *Output { return &Output{changed: make(chan struct{})} }

// Write implements io.Writer.
func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text.Write(p)
	close(o.changed)
	o.changed = make(chan struct{})
	return len(p), nil
}

// String is all of it so far.
func (o *Output) String() string {
	text, _ := o.look()
	return text
}

// Until waits for the text to hold a string.
func (o *Output) Until(ctx context.Context, want string) error {
	for {
		text, changed := o.look()
		if strings.Contains(text, want) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%q does not come: %w; so far %d bytes, ending %q", want, ctx.Err(), len(text), text[max(0, len(text)-300):])
		}
	}
}

func (o *Output) look() (string, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String(), o.changed
}
