// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxEntropy bounds what one call credits.
const maxEntropy = 512

// poolInfo is struct rand_pool_info of linux/random.h with room for maxEntropy bytes.
type poolInfo struct {
	bits int32
	size int32
	data [maxEntropy]byte
}

// AddEntropy mixes the bytes into the random generator, credits them in full
// and reseeds at once, so that clones of one template diverge before anything
// draws a number (random(4), RNDADDENTROPY and RNDRESEEDCRNG).
func AddEntropy(seed []byte) error {
	if len(seed) == 0 || len(seed) > maxEntropy {
		return fmt.Errorf("entropy of %d bytes: give 1 to %d", len(seed), maxEntropy)
	}
	dev, err := os.OpenFile("/dev/urandom", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("adding entropy: %w", err)
	}
	defer dev.Close()
	info := poolInfo{bits: int32(len(seed) * 8), size: int32(len(seed))}
	copy(info.data[:], seed)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, dev.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&info))); errno != 0 {
		return fmt.Errorf("adding entropy: %w", errno)
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, dev.Fd(), rndReseedCRNG, 0); errno != 0 {
		return fmt.Errorf("reseeding the random generator: %w", errno)
	}
	return nil
}

// rndReseedCRNG is _IO('R', 0x07), which x/sys lacks.
const rndReseedCRNG = 0x5207
