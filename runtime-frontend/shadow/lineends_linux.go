// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package shadow

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// copyOutput copies what the terminal shows. A file or a pipe gets the line ends
// that the program wrote.
func copyOutput(out, master *os.File) error {
	if _, err := unix.IoctlGetTermios(int(out.Fd()), unix.TCGETS); err == nil {
		_, err := io.Copy(out, master)
		return err
	}
	lines := &lineEnds{to: out}
	_, err := io.Copy(lines, master)
	return errors.Join(err, lines.flush())
}

// lineEnds takes back what the guest's line discipline does for a screen: it makes
// CR LF of LF (termios(3), ONLCR). runc has that off for a terminal in the foreground, and scripts compare its lines.
type lineEnds struct {
	to io.Writer
	cr bool // the last byte was one, and is not written yet
}

// Write implements io.Writer.
func (l *lineEnds) Write(p []byte) (int, error) {
	out := make([]byte, 0, len(p)+1)
	for _, b := range p {
		if l.cr && b != '\n' {
			out = append(out, '\r')
		}
		if l.cr = b == '\r'; !l.cr {
			out = append(out, b)
		}
	}
	if _, err := l.to.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}

// flush writes a CR that nothing followed.
func (l *lineEnds) flush() error {
	if !l.cr {
		return nil
	}
	l.cr = false
	_, err := l.to.Write([]byte{'\r'})
	return err
}
