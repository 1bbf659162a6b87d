// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package frontend is the OCI runtime command line "bulkhead", which engines
// call in the place of runc. It reads bundles, starts the relay that stands for
// a container process on the host, runs the caller's hooks, and asks the vm
// service on the bus for everything else. It may import bus, proto and its own
// rooms (bundle, hooks, shadow), and no service.
//
// The invariant: a command that fails leaves nothing behind. No relay, no pid-file, no record that was not there
// before; and it says why exactly once on stderr and once in --log. One that is killed leaves no more: the
// relay ends with it, and the worker rolls back.
//
// Each command is a value in the file named for it.
package frontend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v3"
)

// Streams are the standard streams of a command.
type Streams struct {
	In, Out, Err *os.File
}

// command is one command of the command line.
type command struct {
	name        string
	usage       string // one line
	args        string // what follows the flags
	description string
	flags       func() []cli.Flag
	minArgs     int
	maxArgs     int // -1: any number
	// freeArgs: what follows the id is not ours to parse.
	freeArgs bool
	// deadline bounds the whole command. Zero: the command has its own.
	deadline time.Duration
	// failure is the exit status of an error, 1 unless set.
	failure int
	run     func(context.Context, *invocation) error
}

// The deadlines of commands. An engine gives a create between 120 and 240 s,
// and what it waits for inside of a lock should be short.
const (
	commandDeadline = 30 * time.Second
	killDeadline    = 10 * time.Second
)

// commands in the order of a container's life, as "help" lists them.
var commands = []command{
	createCommand, startCommand, runCommand, execCommand, stateCommand, listCommand, psCommand, eventsCommand, statsCommand,
	killCommand, pauseCommand, resumeCommand, updateCommand, deleteCommand,
	specCommand, featuresCommand, versionCommand,
	checkpointCommand, restoreCommand,
}

// exitStatus is an end that is not an error: the status of a process that ran
// in the foreground.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

const (
	failureStatus        = 1
	unknownCommandStatus = 3
	execFailureStatus    = 255
)

// unknownCommand keeps the exit status of an unknown command apart from others.
type unknownCommand struct{ name string }

func (e *unknownCommand) Error() string {
	return fmt.Sprintf("unknown command %q: see \"bulkhead --help\"", e.name)
}

// Main runs one command line, args[0] being the program's name, and returns its exit status.
//
// The parser is urfave/cli v3 for one reason: it alone of its family passes what follows the id of an exec on untouched
// (StopOnNthArg). v1, which runc uses, swallows "--" and answers "-h" among those arguments with its own help. All of
// them take "--flag v", "--flag=v", single-dash long flags and shorts; short flags cannot be joined ("-td"), because
// "-no-subreaper" is one flag. Its start-up costs no time that can be measured next to that of the process.
func Main(ctx context.Context, args []string, std Streams) int {
	return runLine(ctx, args, &globals{std: std, startRelay: startShadow})
}

func runLine(ctx context.Context, args []string, g *globals) int {
	status := failureStatus
	root := &cli.Command{
		Name:            "bulkhead",
		Usage:           "run OCI containers in virtual machines",
		Description:     "bulkhead takes the place of runc. It needs the daemon bulkheadd on the same host.",
		Flags:           g.flags(),
		HideVersion:     true, // ours also tells the commit and the specification
		HideHelpCommand: true, // "help" is a legal container id
		Writer:          g.std.Out,
		ErrWriter:       io.Discard, // errors are reported once, by us
		ExitErrHandler:  func(context.Context, *cli.Command, error) {},
		OnUsageError:    func(_ context.Context, _ *cli.Command, err error, _ bool) error { return err },
		Action: func(ctx context.Context, c *cli.Command) error {
			switch {
			case g.version:
				return printVersion(g.std.Out)
			case c.Args().Len() == 0:
				return cli.ShowRootCommandHelp(c)
			case c.Args().First() == "help" || c.Args().First() == "h":
				if c.Args().Len() == 1 {
					return cli.ShowRootCommandHelp(c)
				}
				return cli.ShowCommandHelp(ctx, c, c.Args().Get(1))
			default:
				return &unknownCommand{c.Args().First()}
			}
		},
	}
	for i := range commands {
		root.Commands = append(root.Commands, build(&commands[i], g, &status))
	}
	err := root.Run(ctx, joinOptionalValues(args))

	var ended exitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &ended):
		return int(ended)
	}
	if unknown := new(unknownCommand); errors.As(err, &unknown) {
		status = unknownCommandStatus
	}
	g.reporter().Error(errorText(err))
	return status
}

// build turns a command into the parser's form. failure becomes the status for
// errors as soon as the command acts: a wrong command line ends with 1 always, as runc's does.
func build(c *command, g *globals, failure *int) *cli.Command {
	b := &cli.Command{
		Name:                      c.name,
		Usage:                     c.usage,
		ArgsUsage:                 c.args,
		Description:               c.description,
		HideHelpCommand:           true,
		DisableSliceFlagSeparator: true, // --env A=1,2 is one variable
	}
	if c.flags != nil {
		b.Flags = c.flags()
	}
	if c.freeArgs {
		afterID := 1
		b.StopOnNthArg = &afterID
	}
	b.OnUsageError = func(_ context.Context, _ *cli.Command, err error, _ bool) error {
		return fmt.Errorf("%s: %w: see \"bulkhead %s --help\"", c.name, err, c.name)
	}
	b.Action = func(ctx context.Context, parsed *cli.Command) error {
		n := parsed.Args().Len()
		switch {
		case n < c.minArgs:
			return fmt.Errorf("%s: %q requires at least %d argument(s): %s", c.name, c.name, c.minArgs, c.args)
		case c.maxArgs >= 0 && n > c.maxArgs:
			return fmt.Errorf("%s: %q takes at most %d argument(s): %s", c.name, c.name, c.maxArgs, c.args)
		}
		if c.failure != 0 {
			*failure = c.failure
		}
		if c.deadline > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, c.deadline)
			defer cancel()
		}
		inv := &invocation{globals: g, Command: parsed}
		defer inv.close()
		return c.run(ctx, inv)
	}
	return b
}

// joinOptionalValues lets --rootless stand alone or be followed by its value:
// runc and crun differ there, and engines follow both.
func joinOptionalValues(args []string) []string {
	var joined []string
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if i > 0 && (len(arg) == 0 || arg[0] != '-') && !valueOf(args[i-1]) {
			return append(joined, args[i:]...) // the command: its flags are its own
		}
		if (arg == "--rootless" || arg == "-rootless") && i+1 < len(args) {
			switch args[i+1] {
			case "true", "false", "auto":
				joined = append(joined, arg+"="+args[i+1])
				i++
				continue
			}
		}
		joined = append(joined, arg)
	}
	return joined
}

// valueOf says whether a global flag takes the next argument as its value.
func valueOf(flag string) bool {
	switch flag {
	case "--root", "-root", "--log", "-log", "--log-format", "-log-format", "--criu", "-criu",
		"--cgroup-manager", "-cgroup-manager", "--config", "-config":
		return true
	}
	return false
}

// absolute makes a path independent of the working directory; empty stays empty.
func absolute(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("finding %q: %w", path, err)
	}
	return abs, nil
}
