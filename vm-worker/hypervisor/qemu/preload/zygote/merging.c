// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

/*
 * What the host may merge of a child (madvise(2), MADV_MERGEABLE): the guest's memory, and what QEMU has allocated, where
 * children of one zygote that do the same write the same at the same addresses. Translated code is left out: it
 * is most of a child's memory, and so seldom equal that looking at it costs more than it gives.
 */
#include "zygote.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { LARGEST = 64 << 20 }; /* of what is allocated; beyond are reserves of addresses */

/* Refused for what is a shared mapping, which has nothing to merge. */
static void merge(void *start, size_t length) { syscall(SYS_madvise, start, length, MADV_MERGEABLE); }

/* One line of /proc/self/maps: "from-to rw-p offset device inode   name". */
static void merge_allocated(char *line)
{
	char *rest, *end;
	unsigned long from = strtoul(line, &rest, 16);
	unsigned long to = *rest == '-' ? strtoul(rest + 1, &rest, 16) : 0;

	if (to <= from || to - from > LARGEST || strncmp(rest, " rw-p ", 6) != 0)
		return;
	end = strrchr(line, ' ');
	if (end != NULL && (end[1] == 0 || strcmp(end + 1, "[heap]") == 0))
		merge((void *)from, to - from);
}

void merge_memory(void)
{
	static char text[64 << 10]; /* one read gives whole lines */
	ssize_t have = 0, n;
	int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);

	for (int i = 0; i < guest_memories; i++)
		merge(guest_memory[i].start, guest_memory[i].length);
	if (fd < 0)
		return;
	while (have < (ssize_t)sizeof text - 1 && (n = read(fd, text + have, sizeof text - 1 - have)) > 0)
		have += n;
	close(fd);
	text[have] = 0;
	for (char *line = text, *next; line != NULL && *line != 0; line = next) {
		next = strchr(line, '\n');
		if (next != NULL)
			*next++ = 0;
		merge_allocated(line);
	}
	keep_buckets_apart();
}
