// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"os"
	"strings"
)

// writeWrapper makes a program of a runtime with arguments of its own, for
// engines that name a runtime by one path alone, and for podman, which leaves a
// runtime's configured flags out of some of its calls.
func writeWrapper(path string, r Runtime) error {
	words := append([]string{r.Path}, r.Args...)
	for i, word := range words {
		words[i] = "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
	}
	return os.WriteFile(path, []byte("#!/bin/sh\nexec "+strings.Join(words, " ")+" \"$@\"\n"), 0o755)
}
