// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

/*
 * Where the buckets are that a full bucket of the table of translations (translations.c) is continued in. QEMU allocates
 * each by itself, so the C library would make them of what happens to be free, all over what QEMU has allocated: each one
 * of a child's would make another page its own. Here they lie side by side. What is used is not used again, as
 * QEMU frees them all at once and seldom; when nothing is left, they are the C library's again.
 */
#include <errno.h>
#include <stdlib.h>

#include "zygote.h"

#include <stdatomic.h>
#include <sys/mman.h>

enum { SPACE = 8 << 20 }; /* of addresses, for more than the blocks for which there is room can fill */

extern void __libc_free(void *);
extern void *__libc_memalign(size_t, size_t);

static char *space; /* NULL: not used */
static _Atomic size_t used;

bool open_buckets(void)
{
	void *p = mmap(NULL, SPACE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		return false;
	space = p;
	return true;
}

void *take_buckets(size_t length)
{
	size_t at;

	if (space == NULL || length > SPACE)
		return NULL;
	at = atomic_fetch_add(&used, length);
	if (at > SPACE - length) {
		atomic_store(&used, SPACE);
		return NULL;
	}
	return space + at;
}

/* They are full of addresses: no two VMs have the same. */
void keep_buckets_apart(void)
{
	if (space != NULL)
		madvise(space, SPACE, MADV_UNMERGEABLE);
}

int posix_memalign(void **result, size_t alignment, size_t length)
{
	void *p = NULL;

	if (alignment % sizeof(void *) != 0 || alignment == 0 || (alignment & (alignment - 1)) != 0)
		return EINVAL;
	if (alignment == BUCKET && length == BUCKET)
		p = take_buckets(BUCKET);
	if (p == NULL)
		p = __libc_memalign(alignment, length);
	if (p == NULL)
		return ENOMEM;
	*result = p;
	return 0;
}

void free(void *p)
{
	if (space == NULL || (char *)p < space || (char *)p >= space + SPACE)
		__libc_free(p);
}
