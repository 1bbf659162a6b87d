// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"errors"
	"fmt"
	"regexp"

	"github.com/opencontainers/runtime-spec/specs-go"
)

var schedulerPolicies = map[specs.LinuxSchedulerPolicy]bool{
	specs.SchedOther: true, specs.SchedFIFO: true, specs.SchedRR: true, specs.SchedBatch: true,
	specs.SchedISO: true, specs.SchedIdle: true, specs.SchedDeadline: true,
}

var schedulerFlags = map[specs.LinuxSchedulerFlag]bool{
	specs.SchedFlagResetOnFork: true, specs.SchedFlagReclaim: true, specs.SchedFlagDLOverrun: true, specs.SchedFlagKeepPolicy: true,
	specs.SchedFlagKeepParams: true, specs.SchedFlagUtilClampMin: true, specs.SchedFlagUtilClampMax: true,
}

// cpuList is the kernel's format of CPU sets: "0-3,7".
var cpuList = regexp.MustCompile(`^\d+(-\d+)?(,\d+(-\d+)?)*$`)

// checkScheduling holds a process to the rules of sched(7) and ioprio_set(2), as far as they can be known before
// (runtime-spec, config.md#linux-process). Whether the numbers of processors exist, only the guest knows.
func checkScheduling(p *specs.Process) error {
	var errs []error
	say := func(property, format string, args ...any) {
		errs = append(errs, refuse(property, fmt.Sprintf(format, args...)))
	}
	if s := p.Scheduler; s != nil {
		realtime := s.Policy == specs.SchedFIFO || s.Policy == specs.SchedRR
		switch {
		case !schedulerPolicies[s.Policy]:
			say("process.scheduler.policy", "unknown policy %q", s.Policy)
		case s.Policy == specs.SchedISO:
			say("process.scheduler.policy", "SCHED_ISO is reserved by Linux and was never made")
		case s.Nice < -20 || s.Nice > 19:
			say("process.scheduler.nice", "%d is outside -20..19", s.Nice)
		case !realtime && s.Priority != 0:
			say("process.scheduler.priority", "%s has no priority, only SCHED_FIFO and SCHED_RR have", s.Policy)
		case realtime && (s.Priority < 1 || s.Priority > 99):
			say("process.scheduler.priority", "%d is outside 1..99", s.Priority)
		case s.Policy != specs.SchedDeadline && (s.Runtime != 0 || s.Deadline != 0 || s.Period != 0):
			say("process.scheduler.runtime", "%s has no runtime, deadline and period, only SCHED_DEADLINE has", s.Policy)
		}
		for _, flag := range s.Flags {
			if !schedulerFlags[flag] {
				say("process.scheduler.flags", "unknown flag %q", flag)
			}
		}
	}
	if io := p.IOPriority; io != nil {
		switch {
		case io.Class != specs.IOPRIO_CLASS_RT && io.Class != specs.IOPRIO_CLASS_BE && io.Class != specs.IOPRIO_CLASS_IDLE:
			say("process.ioPriority.class", "unknown class %q", io.Class)
		case io.Priority < 0 || io.Priority > 7:
			say("process.ioPriority.priority", "%d is outside 0..7", io.Priority)
		}
	}
	if a := p.ExecCPUAffinity; a != nil {
		for property, list := range map[string]string{"initial": a.Initial, "final": a.Final} {
			if list != "" && !cpuList.MatchString(list) {
				say("process.execCPUAffinity."+property, "%q is not a list of processors such as 0-3,7", list)
			}
		}
	}
	return errors.Join(errs...)
}

// checkPersonality lets the two execution domains of the specification pass (config-linux.md#personality).
func checkPersonality(p *specs.LinuxPersonality) error {
	if p == nil || p.Domain == specs.PerLinux || p.Domain == specs.PerLinux32 {
		return nil
	}
	return refuse("linux.personality.domain", fmt.Sprintf("unknown domain %q: use LINUX or LINUX32", p.Domain))
}
