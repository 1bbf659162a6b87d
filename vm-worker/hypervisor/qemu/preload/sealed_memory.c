// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

/*
 * Preloaded into QEMU, so that a VM that continues from a template gives the
 * memory back that its guest has free.
 *
 * QEMU discards a page of guest memory that comes from a file in two steps
 * (ram_block_discard_range): it punches a hole into the file, and has the kernel
 * forget the page of its mapping. A template's file is sealed, so the first
 * is refused, and QEMU leaves the second. But the second is all that is
 * wanted there: the mapping is private, and what is forgotten is the VM's own copy. So
 * the refusal of a hole in a sealed file, and nothing else, looks like a success.
 *
 * What the guest finds in such a page later is the template's, not zeros: its kernel
 * must not count on those for free pages (no CONFIG_INIT_ON_FREE_DEFAULT_ON, no init_on_free=1).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

int fallocate64(int fd, int mode, off64_t offset, off64_t length)
{
	int seals;

	if (syscall(SYS_fallocate, fd, mode, offset, length) == 0)
		return 0;
	if (errno == EPERM && (mode & FALLOC_FL_PUNCH_HOLE)) {
		seals = fcntl(fd, F_GET_SEALS);
		if (seals != -1 && (seals & F_SEAL_WRITE))
			return 0;
		errno = EPERM;
	}
	return -1;
}

/* As the program was compiled; on x86-64 both are the same. */
int fallocate(int fd, int mode, off_t offset, off_t length)
{
	return fallocate64(fd, mode, offset, length);
}
