// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

/* The command line that ps shows is memory of the process's own. */
#include "zygote.h"

#include <stdlib.h>
#include <string.h>

enum { ARGUMENTS_START = 48 }; /* proc(5), /proc/pid/stat */

void rename_process(const char *from, const char *to)
{
	char stat[1024], *field, *start, *end, *at;
	size_t room = strlen(from), length = strlen(to);

	if (room == 0 || read_file("/proc/self/stat", stat, sizeof stat) < 0 || (field = strrchr(stat, ')')) == NULL)
		return;
	for (int n = 2; n < ARGUMENTS_START; n++)
		if ((field = strchr(field + 1, ' ')) == NULL)
			return;
	start = (char *)strtoull(field, &field, 10);
	end = (char *)strtoull(field, NULL, 10);
	if (start == NULL || end <= start || (at = memmem(start, end - start, from, room)) == NULL)
		return;
	if (length <= room) { /* what follows moves up: its end is blank */
		size_t rest = strlen(at + room);

		memcpy(at, to, length);
		memmove(at + length, at + room, rest);
		memset(at + length + rest, 0, room - length);
		return;
	}
	memcpy(at, to, room);
}
