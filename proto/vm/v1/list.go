// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmv1

// ListAll asks as often as the list of containers has parts, and puts them together.
func ListAll(root string, ask func(*ListRequest) (*ListReply, error)) (*ListReply, error) {
	whole := &ListReply{}
	told := map[string]bool{}
	for req := (&ListRequest{Root: root}); ; {
		reply, err := ask(req)
		if err != nil {
			return nil, err
		}
		whole.Containers = append(whole.Containers, reply.GetContainers()...)
		for _, s := range reply.GetSandboxes() { // a VM whose containers are in several parts is in each of them
			if !told[s.GetId()] {
				told[s.GetId()] = true
				whole.Sandboxes = append(whole.Sandboxes, s)
			}
		}
		if reply.GetNext() == "" {
			return whole, nil
		}
		req = &ListRequest{Root: root, After: reply.GetNext()}
	}
}

// StatsOfAll likewise asks what all VMs cost. The host's numbers and the sum are of the first answer.
func StatsOfAll(ask func(*StatsRequest) (*StatsReply, error)) (*StatsReply, error) {
	whole, err := ask(&StatsRequest{})
	for next := whole.GetNext(); err == nil && next != ""; {
		var reply *StatsReply
		if reply, err = ask(&StatsRequest{After: next}); err == nil {
			whole.Vms = append(whole.Vms, reply.GetVms()...)
			next, whole.Next = reply.GetNext(), ""
		}
	}
	if err != nil {
		return nil, err
	}
	return whole, nil
}
