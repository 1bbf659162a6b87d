// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	testFunc = regexp.MustCompile(`(?m)^func ((?:Test|Benchmark|Fuzz)\w+)\(`)
	// A name that ends with … stands for all that begin so.
	testName   = regexp.MustCompile(`\b(?:Test|Benchmark|Fuzz)[A-Z]\w*…?`)
	promise    = regexp.MustCompile(`(?m)^\| [^|]+ \| ((?:[^|:]*: [^|:;]+;? ?)+) \|$`)
	requires   = regexp.MustCompile(`(?m)^\t(\S+) v\S+$`)
	packageDir = regexp.MustCompile(`^(?:([^/]+(?:/[^/]+)?)/)?[^/]+\.go$`)
)

func TestDocumentsNameTestsThatExist(t *testing.T) {
	var tests []string
	for _, file := range tracked(t, "*_test.go") {
		for _, m := range testFunc.FindAllStringSubmatch(read(t, file), -1) {
			tests = append(tests, m[1])
		}
	}
	exists := func(name string) bool {
		if begin, all := strings.CutSuffix(name, "…"); all {
			return slices.ContainsFunc(tests, func(test string) bool { return strings.HasPrefix(test, begin) })
		}
		return slices.Contains(tests, name)
	}
	named := 0
	for _, file := range tracked(t, "*.md") {
		for _, name := range testName.FindAllString(read(t, file), -1) {
			named++
			if !exists(name) {
				t.Errorf("%s names %s, which is no test", file, name)
			}
		}
	}
	// The table of promises leaves "Test" out, and what one name has in common with the one before.
	_, table, _ := strings.Cut(read(t, "docs/architecture.md"), "\n## Invariants")
	for _, row := range promise.FindAllStringSubmatch(table, -1) {
		for part := range strings.SplitSeq(row[1], ";") {
			_, names, _ := strings.Cut(part, ":")
			for name := range strings.SplitSeq(names, ",") {
				named++
				name = strings.TrimSpace(name)
				end, cut := strings.CutPrefix(name, "…")
				if !exists("Test"+name) && !exists(name) && !(cut && slices.ContainsFunc(tests, func(test string) bool { return strings.HasSuffix(test, end) })) {
					t.Errorf("docs/architecture.md names %q among its promises, which is no test", name)
				}
			}
		}
	}
	if len(tests) < 100 || named < 100 {
		t.Fatalf("%d tests and %d names found: the check saw too little to mean anything", len(tests), named)
	}
}

func TestArchitectureNamesEveryDependencyAndEveryRoom(t *testing.T) {
	page := read(t, "docs/architecture.md")
	_, table, _ := strings.Cut(page, "\n## Dependencies")
	direct, _, _ := strings.Cut(read(t, "go.mod"), "\n)") // the indirect ones are a block of their own
	found := requires.FindAllStringSubmatch(direct, -1)
	for _, m := range found {
		name := strings.TrimPrefix(m[1], "github.com/")
		if !strings.Contains(table, "`"+name+"`") {
			t.Errorf("docs/architecture.md does not say why %s is there", m[1])
		}
	}
	_, rooms, _ := strings.Cut(page, "\n## Rooms")
	rooms, _, _ = strings.Cut(rooms, "\n## ")
	seen := map[string]bool{}
	for _, file := range tracked(t, "*.go") {
		m := packageDir.FindStringSubmatch(file)
		if m == nil || m[1] == "" || seen[m[1]] || strings.HasSuffix(m[1], "/cmd") {
			continue
		}
		seen[m[1]] = true
		_, last, _ := strings.Cut(m[1], "/")
		if !strings.Contains(rooms, m[1]) && (last == "" || !regexp.MustCompile(`\b`+last+`\b`).MatchString(rooms)) {
			t.Errorf("docs/architecture.md has no line for %s", m[1])
		}
	}
	if len(found) < 10 || len(seen) < 20 {
		t.Fatalf("%d dependencies and %d rooms found: the check saw too little to mean anything", len(found), len(seen))
	}
}

// tracked are the files of the tree that match a pattern, by their paths below its root.
func tracked(t *testing.T, pattern string) []string {
	t.Helper()
	out, err := exec.Command("git", "-C", "../..", "ls-files", "--cached", "--others", "--exclude-standard", "--deduplicate", pattern).Output()
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(strings.Split(strings.TrimSpace(string(out)), "\n"), func(file string) bool {
		_, err := os.Stat("../../" + file)
		return err != nil // deleted, and not committed yet
	})
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile("../../" + file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
