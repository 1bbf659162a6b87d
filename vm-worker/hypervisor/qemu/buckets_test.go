// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// bucketsProgram allocates as QEMU does, with preload/zygote/buckets.c beside it.
const bucketsProgram = `
#include <stdint.h>
#include <stdlib.h>

#include "zygote.h"

#include <stdio.h>
#include <string.h>

enum { ALL = 1 << 18 }; /* more than there is space for */

static char *bucket(void)
{
	void *p = NULL;

	if (posix_memalign(&p, BUCKET, BUCKET) != 0 || (uintptr_t)p % BUCKET != 0)
		exit(2);
	return p;
}

#define MUST(what) do { if (!(what)) { printf("line %d: not %s\n", __LINE__, #what); return 1; } } while (0)

int main(void)
{
	static char *all[ALL];
	char *before = bucket(), *gathered;
	void *other = NULL;
	size_t beside = 0;

	MUST(open_buckets());
	MUST(take_buckets((8 << 20) + BUCKET) == NULL);
	for (int i = 0; i < ALL; i++) {
		free(malloc(300)); /* a hole, of which one could be made */
		all[i] = bucket();
		memset(all[i], i, BUCKET);
		beside += i > 0 && all[i] == all[i - 1] + BUCKET;
		if (i == 100) {
			gathered = take_buckets(10 * BUCKET);
			MUST(gathered == all[i] + BUCKET);
			for (int j = 0; j < 10 * BUCKET; j++)
				MUST(gathered[j] == 0);
			memset(gathered, 1, 10 * BUCKET);
		}
	}
	MUST(beside >= 100000);
	MUST(take_buckets(BUCKET) == NULL);
	for (int i = 0; i < ALL; i++)
		MUST(all[i][0] == (char)i && all[i][BUCKET - 1] == (char)i);
	for (int i = 0; i < ALL; i++)
		free(all[i]);
	free(before);
	free(NULL);
	MUST(posix_memalign(&other, 4096, 100) == 0 && (uintptr_t)other % 4096 == 0);
	free(other);
	MUST(posix_memalign(&other, 3, 100) != 0 && posix_memalign(&other, 0, 100) != 0);
	return 0;
}
`

// TestBucketsLieSideBySide: those that QEMU continues full ones of its table in, as many as there is space for; then they are the C
// library's, and whatever is freed goes where it came from.
func TestBucketsLieSideBySide(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	source, program := filepath.Join(dir, "main.c"), filepath.Join(dir, "program")
	if err := os.WriteFile(source, []byte(bucketsProgram), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("gcc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-fno-builtin", "-Ipreload/zygote", "-o", program,
		source, "preload/zygote/buckets.c").CombinedOutput(); err != nil {
		t.Fatalf("compiling: %v\n%s", err, out)
	}
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), "MALLOC_CHECK_=3")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
