// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"

	"github.com/hashicorp/go-hclog"
)

// logAdapter gives nats-server's log lines to hclog. The server's notices are
// about itself, so they are debug lines of ours.
type logAdapter struct{ log hclog.Logger }

// Noticef implements server.Logger.
func (l logAdapter) Noticef(format string, v ...any) { l.log.Debug(fmt.Sprintf(format, v...)) }

// Warnf implements server.Logger.
func (l logAdapter) Warnf(format string, v ...any) { l.log.Warn(fmt.Sprintf(format, v...)) }

// Fatalf implements server.Logger; it never ends the process.
func (l logAdapter) Fatalf(format string, v ...any) { l.log.Error(fmt.Sprintf(format, v...)) }

// Errorf implements server.Logger. What it calls errors are mostly clients that
// were refused.
func (l logAdapter) Errorf(format string, v ...any) { l.log.Warn(fmt.Sprintf(format, v...)) }

// Debugf implements server.Logger.
func (l logAdapter) Debugf(format string, v ...any) { l.log.Trace(fmt.Sprintf(format, v...)) }

// Tracef implements server.Logger. Protocol traces hold payloads and are never on.
func (l logAdapter) Tracef(string, ...any) {}
