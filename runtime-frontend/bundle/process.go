// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"errors"
	"fmt"
	"math"
	"path"
	"reflect"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// rlimits are the limits that getrlimit(2) of Linux knows.
var rlimits = map[string]bool{
	"RLIMIT_AS": true, "RLIMIT_CORE": true, "RLIMIT_CPU": true, "RLIMIT_DATA": true,
	"RLIMIT_FSIZE": true, "RLIMIT_LOCKS": true, "RLIMIT_MEMLOCK": true, "RLIMIT_MSGQUEUE": true,
	"RLIMIT_NICE": true, "RLIMIT_NOFILE": true, "RLIMIT_NPROC": true, "RLIMIT_RSS": true,
	"RLIMIT_RTPRIO": true, "RLIMIT_RTTIME": true, "RLIMIT_SIGPENDING": true, "RLIMIT_STACK": true,
}

// CheckProcess judges the process of an exec by the same rules as the one of a
// container.
func CheckProcess(p *specs.Process, opts Options) error {
	if p == nil {
		return errors.New("the process is null")
	}
	if err := errors.Join(errors.Join(walk(reflect.ValueOf(p).Elem(), "process")...), checkProcess(p), checkProcessLabel(p, opts)); err != nil {
		return oneLine(err)
	}
	return nil
}

// checkProcess lets an absent process pass: it may be created, and only fails
// to start (runtime-spec, config.md#process).
func checkProcess(p *specs.Process) error {
	if p == nil {
		return nil
	}
	var errs []error
	if len(p.Args) == 0 {
		errs = append(errs, refuse("process.args", "args must not be empty"))
	} else if p.Args[0] == "" {
		errs = append(errs, refuse("process.args", "the program's name is empty"))
	}
	if !path.IsAbs(p.Cwd) {
		errs = append(errs, refuse("process.cwd", fmt.Sprintf("%q is not an absolute path", p.Cwd)))
	}
	for _, text := range append(append([]string{p.Cwd}, p.Args...), p.Env...) {
		if strings.ContainsRune(text, 0) {
			errs = append(errs, refuse("process", "a string with a NUL byte cannot be passed to a program"))
			break
		}
	}
	if p.OOMScoreAdj != nil && (*p.OOMScoreAdj < -1000 || *p.OOMScoreAdj > 1000) {
		errs = append(errs, refuse("process.oomScoreAdj", fmt.Sprintf("%d is outside -1000..1000", *p.OOMScoreAdj)))
	}
	if size := p.ConsoleSize; size != nil && (size.Width > math.MaxUint16 || size.Height > math.MaxUint16) {
		errs = append(errs, refuse("process.consoleSize", fmt.Sprintf("%d by %d is more than a terminal can be told, %d", size.Width, size.Height, math.MaxUint16)))
	}
	if umask := p.User.Umask; umask != nil && *umask > 0o777 {
		errs = append(errs, refuse("process.user.umask", fmt.Sprintf("%#o is above 0777, all that a mask can hold", *umask)))
	}
	seen := map[string]bool{}
	for _, limit := range p.Rlimits {
		switch {
		case !rlimits[limit.Type]:
			errs = append(errs, refuse("process.rlimits", fmt.Sprintf("unknown limit %q", limit.Type)))
		case seen[limit.Type]:
			errs = append(errs, refuse("process.rlimits", fmt.Sprintf("%s is given twice", limit.Type)))
		case limit.Soft > limit.Hard:
			errs = append(errs, refuse("process.rlimits", fmt.Sprintf("the soft %s is above the hard one", limit.Type)))
		}
		seen[limit.Type] = true
	}
	return errors.Join(append(errs, checkScheduling(p))...)
}
