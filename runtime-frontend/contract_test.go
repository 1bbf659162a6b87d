// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// contract is what engines rely on, rule by rule, and the tests that hold it. A rule is kept where it can be
// broken: in this room, at the relay, in the worker, or with a real VM below test/e2e and agent/vmtest.
var contract = []struct {
	rule  string
	tests string
}{
	// The host process.
	{"a container is a host process, the caller's orphan", "TestRelayIsTheCallersOrphanInItsNamespaces TestContainersAreNamedByTheirHostProcess"},
	{"it ends with the program's status, 128+n for a signal", "TestExitCodesOfSignalsAre128PlusN TestDockerExitCodesAreTheProgramsOwn"},
	{"the pid-file is digits, written last and atomically", "TestPidFileHasNoNewline TestOCILifecycle"},
	{"there is no pid-file after a failure", "TestFailedCreateLeavesNothing TestFailedExecLeavesNothing TestRunThatCannotStartLeavesNothing"},
	{"nothing holds the command's output or descriptors", "TestTerminalCreateLeavesNobodyOnItsOutput TestRelayHoldsNoOtherDescriptorAndOwnsItsSession"},
	{"it stands in the namespaces of the bundle", "TestInitRelayStandsInTheContainersNamespaces TestNamespacesGivenByPathAreEntered TestCopyWorksBothWaysWhileTheContainerRuns"},
	{"it is in the container's cgroup", "TestProcessesEnterAndAreCounted TestStatsAreTheContainersOwn"},
	{"signals to it reach the program, SIGKILL ends it", "TestEveryCatchableSignalIsForwarded TestOCIKill TestTheDeathOfARelayIsTheEndOfItsContainer TestAKilledExecRelayTakesItsProcess"},
	{"execs end with their container", "TestExecRelayJoinsTheInitRelayAndDiesWithIt TestOCIExec"},
	{"all end promptly when the VM dies", "TestDeathOfTheVMEndsTheRelayEvenWithoutAWorker TestTheDeathOfQEMUIsAnExitWithAReason"},

	// The command line.
	{"every caller's argv is understood", "TestArgvOfEveryCaller"},
	{"what follows an exec's id is the program's", "TestExecPassesArgumentsUntouched"},
	{"wrong command lines end with runc's statuses", "TestWrongCommandLines"},
	{"ids are runc's", "TestWrongCommandLines TestArgvOfEveryCaller"},
	{"signals by name and number", "TestSignals"},
	{"any ociVersion 1.x is accepted", "TestOCIVersions"},
	{"--root separates", "TestIDsAreScopedByRoot TestOCIRootsAreWorldsOfTheirOwn"},
	{"both forms of cgroupsPath", "TestCgroupsPathForms"},
	{"what cannot be done is refused by name", "TestEveryPropertyOfTheSpecHasAVerdict TestWhatCannotBeDoneIsRefusedByName TestOCIRefusesWhatItCannotDo"},

	// The commands.
	{"create: a failure leaves nothing", "TestFailedCreateLeavesNothing TestCreateRollsBackAtEveryStep"},
	{"create: killed at any point leaves nothing", "TestKilledCreateTakesItsRelayAlong TestInterruptedCreateIsUndone TestACreateThatIsKilledHalfWayLeavesNothing TestDeathOfTheFrontendEndsTheRelayUnlessCommitted"},
	{"create: a taken id is refused and untouched", "TestDuplicateIDLeavesTheOtherAlone TestLostRaceForAnIDLeavesTheOtherAlone"},
	{"create: config.json is read once", "TestWhatBecomesOfABundleAfterCreateDoesNotMatter TestOCILifecycle"},
	{"start: once, and only after create", "TestStartTwiceAndAfterTheEnd"},
	{"state: exactly the keys, no pid when stopped", "TestStateHasExactlyTheKeysOfTheContract TestStateOfAGoneRelayIsStoppedWithoutPid"},
	{"state and list never wait for a VM", "TestStateAndListNeverWaitForAGuest TestStateAnswersWhileAGuestBoots"},
	{"list: table, JSON and ids", "TestIDsAreScopedByRoot TestListIsForPeopleAndPrograms"},
	{"ps: the host processes", "TestPsPrintsTheRelays"},
	{"kill: reaches the program; --all of a stopped one succeeds", "TestKillPassesTheSignal TestKillOfAStoppedContainer TestOCIKill"},
	{"kill -9 needs neither a thaw nor an answer", "TestOCIPauseAndResume TestSIGKILLNeedsNoAgent"},
	{"delete: stopped and created; running needs --force", "TestDeleteOfARunningContainerNeedsForce TestACreatedContainerCanBeRemovedUnstarted"},
	{"delete --force: silent for the unknown, repeatable", "TestForceDeleteOfUnknownIsSilent TestRemoveByForceEndsARunningContainer"},
	{"exec: runs before it returns, and ends with the program's status", "TestExecOfAProcessFile TestForegroundExecEndsWithTheProgramsStatus TestOCIExec"},
	{"exec: 255 and the words for a missing program", "TestFailedExecLeavesNothing TestExecRunsInTheContainer"},
	{"exec: not in a stopped or paused container", "TestPauseAndResume TestFailedExecLeavesNothing"},
	{"pause and resume", "TestPauseAndResume TestOCIPauseAndResume"},
	{"events: runc's shape, until the container ends", "TestEventsOnce TestEventsFollowUntilTheContainerEnds TestOCIEvents"},
	{"update: what callers send, merged; zero is no change", "TestUpdatePassesWhatCallersSend TestLimitsAreMerged TestUpdateChangesHostAndGuestOrNeither"},
	{"run: waits, forwards signals, removes", "TestRunWaitsAndRemoves TestForegroundEndsWithTheProcesssStatus TestNoSignalIsLostBetweenSetUpAndForeground"},
	{"spec, features and version need nothing", "TestSpecWritesABundleThatPasses TestVersionAndFeaturesNeedNoDaemon TestOCIAnswersWhatEnginesAskFirst"},
	{"checkpoint is refused, and its --help is not", "TestCheckpointHelpEndsWell"},

	// Streams and terminals.
	{"output is whole before the exit", "TestExitWaitsForTheOutputToBeRead TestTheLastBytesBeforeAnExitAreNotLost"},
	{"a background child does not hold the exit", "TestBackgroundChildDoesNotHoldTheExit TestAChildThatHoldsTheOutputDoesNotHoldTheExit"},
	{"the console is sent once, raw and sized", "TestConsoleIsSentOnceRawSizedAndWithItsName TestTerminalCreateLeavesNobodyOnItsOutput"},
	{"a terminal needs a socket, a socket a terminal", "TestOCITerminalNeedsItsSocket"},
	{"resizing and hanging up reach the program", "TestOCITerminal TestClosedConsoleHangsUpTheProcess"},
	{"a foreground terminal is proxied and restored", "TestForegroundTerminalIsProxiedAndRestored"},
	{"--preserve-fds is refused", "TestFailedCreateLeavesNothing"},
	{"--pidfd-socket gets a pidfd", "TestPidfdSocketGetsAPidfd"},

	// Errors and logs.
	{"one error, on stderr and in --log", "TestLogLineIsWhatGoRuncParses TestOCIErrorsAreLoggedAsJSON"},
	{"--log is appended to, and may be impossible", "TestLogIsAppendedTo TestLogInAMissingDirectoryIsIgnored"},
	{"the words that engines match", "TestUnknownContainers TestRefusalsAreInTheWordsThatEnginesMatch"},
	{"our failures never read like the program's", "TestOwnFailuresNeverReadLikeTheContainers TestNamelessTextsNeverLookLikeAMissingProgram TestWordsOfGuestsPass"},
	{"an absent daemon or part is told in a sentence", "TestAbsentDaemonIsTold TestAMissingRelayIsNamed TestAMissingPartIsNamed TestWithoutADaemonTheUserLearnsHowToStartIt"},

	// Hooks and network.
	{"hooks get the state, their environment and a deadline", "TestHookReadsTheStateOnStdin TestHookGetsExactlyItsArgumentsAndEnvironment TestTimeoutKillsTheProcessGroup"},
	{"create hooks see the living process; a failure undoes", "TestCreateHooksSeeTheRelayCreating TestFailedCreateRunsPoststopHooks"},
	{"createContainer hooks run in the container's namespaces before its root changes", "TestBeforeTheRootChangesHooksSeeBoth TestOCIHooksRunInOrderAndInTheirNamespaces"},
	{"a namespace of another container means its VM", "TestAContainerRunsInTheVMWhoseNamespacesItJoins TestOCIContainersShareNamespacesInOneVM TestDockerContainersJoinEachOther"},
	{"poststart by version, poststop to the last", "TestPoststartFailureFollowsTheVersion TestPoststartAndPoststopHooks TestPoststopRunsTheRestAfterAFailure"},
	{"its network is that of its namespace, also what comes after create", "TestAContainerStartsWithTheNetworkOfItsNamespace TestAVMFollowsItsNamespaceThroughRestarts"},
}

var testFunction = regexp.MustCompile(`(?m)^func (Test\w+)\(`)

// TestEveryRuleOfTheContractHasItsTest fails for a test that was renamed or removed and leaves a rule unkept.
func TestEveryRuleOfTheContractHasItsTest(t *testing.T) {
	var names []string
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, match := range testFunction.FindAllSubmatch(text, -1) {
			names = append(names, string(match[1]))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range contract {
		for _, name := range strings.Fields(c.tests) {
			if !slices.Contains(names, name) {
				t.Errorf("%q is held by %s, which does not exist", c.rule, name)
			}
		}
	}
}
