// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"bulkhead/test/e2e/host"
)

const (
	// stepTime bounds every command of a person, on a busy machine under emulation:
	// one that takes longer hangs.
	stepTime = 90 * time.Second
	// settleTime bounds what follows a command without being waited for.
	settleTime = 30 * time.Second
)

// trial is a scenario on a runtime. It collects what is not as expected; a step
// that hangs is its end: the steps after it do nothing.
type trial struct {
	ctx      context.Context
	bench    *bench
	shared   map[string]string // among the scenarios of a chain
	problems []error
	hung     bool
}

func (t *trial) complain(format string, args ...any) {
	if !t.hung {
		t.problems = append(t.problems, fmt.Errorf(format, args...))
	}
}

func (t *trial) hang(err error) {
	t.complain("%w", err)
	t.hung = true
}

// verdict is nil if all was as expected.
func (t *trial) verdict() error { return errors.Join(t.problems...) }

// name is a name for a container of the chain.
func (t *trial) name(what string) string {
	return strings.ReplaceAll(t.bench.ground.Token, "/", "-") + "-" + what
}

// run runs a command to its end and to the end of its output.
func (t *trial) run(c client, stdin string, args ...string) outcome {
	argv := c.argv(args...)
	if t.hung {
		return outcome{t: t, command: argv}
	}
	ctx, cancel := context.WithTimeout(t.ctx, stepTime)
	defer cancel()
	r, err := host.Run(ctx, strings.NewReader(stdin), c.env, argv...)
	if err != nil {
		t.hang(fmt.Errorf("%s: %w; stdout %.300q, stderr %.300q", strings.Join(args, " "), err, r.Stdout, r.Stderr))
	}
	return outcome{r, t, args}
}

// outcome is a command that has ended.
type outcome struct {
	host.Result
	t       *trial
	command []string
}

func (o outcome) complain(format string, args ...any) {
	o.t.complain("%s: %s; code %d, stdout %.300q, stderr %.500q",
		strings.Join(o.command, " "), fmt.Sprintf(format, args...), o.Code, o.Stdout, o.Stderr)
}

// ends wants a code and the whole of stdout.
func (o outcome) ends(code int, stdout string) outcome {
	if o.Code != code || o.Stdout != stdout {
		o.complain("want code %d and stdout %q", code, stdout)
	}
	return o
}

// succeeds wants code 0.
func (o outcome) succeeds() outcome {
	if o.Code != 0 {
		o.complain("want code 0")
	}
	return o
}

// fails wants a code, and words on stderr or, as some clients have it, on stdout.
func (o outcome) fails(code int, words ...string) outcome {
	if o.Code != code {
		o.complain("want code %d", code)
	}
	return o.says(words...)
}

// says wants words in the output.
func (o outcome) says(words ...string) outcome {
	for _, word := range words {
		if !strings.Contains(o.Stdout+o.Stderr, word) {
			o.complain("want the words %q", word)
		}
	}
	return o
}

// text is stdout without the blank around it.
func (o outcome) text() string { return strings.TrimSpace(o.Stdout) }

// equal wants a value.
func equal[T comparable](t *trial, what string, got, want T) {
	if got != want {
		t.complain("%s is %v instead of %v", what, quoted(got), quoted(want))
	}
}

func quoted(v any) string {
	if s, ok := v.(string); ok {
		return fmt.Sprintf("%.300q", s)
	}
	return fmt.Sprint(v)
}

// holds wants something to be true.
func (t *trial) holds(what string, is bool) {
	if !is {
		t.complain("it is not so that %s", what)
	}
}

// until looks until the answer is as wanted. The tests look from outside, where
// no event tells.
func (t *trial) until(what string, want string, look func() string) {
	const pause = 100 * time.Millisecond
	before := len(t.problems)
	for deadline := time.Now().Add(settleTime); !t.hung; time.Sleep(pause) {
		t.problems = t.problems[:before] // what an earlier look complained of may have passed
		got := look()
		if got == want {
			return
		}
		if time.Now().After(deadline) {
			t.complain("%s stays %q instead of %q for %s", what, got, want, settleTime)
			return
		}
	}
}
