package ens

import (
	"cmp"
	"encoding/json"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

type object = map[string]any

// action is one call of the API.
type action struct {
	parameters []string // that may be there; "X.N" stands for X.1, X.2, ...
	required   []string
	// do carries the call out and returns the answer. from is the state that lists show.
	do func(c *Cloud, q query, from *state) (object, error)
}

var actions = map[string]action{ // read only
	"DescribeInstances": {[]string{"InstanceId", "InstanceIds", "EnsRegionId", "Status", "VSwitchId", "PageNumber", "PageSize"}, nil, (*Cloud).describeInstances},
	"StartInstance":     {[]string{"InstanceId"}, []string{"InstanceId"}, (*Cloud).startInstance},
	"StopInstance":      {[]string{"InstanceId", "ForceStop"}, []string{"InstanceId"}, (*Cloud).stopInstance},
	"CreateNetworkInterface": {[]string{"SecurityGroupIds", "VSwitchId", "Name", "Description"},
		[]string{"SecurityGroupIds", "VSwitchId"}, (*Cloud).createInterface},
	"AttachNetworkInterface": {[]string{"NetworkInterfaceId", "InstanceId"}, []string{"NetworkInterfaceId", "InstanceId"}, (*Cloud).attach},
	"DescribeNetworkInterfaces": {[]string{"InstanceId", "NetworkInterfaceIds.N", "NetworkInterfaceName", "VSwitchId", "Status", "Type", "PageNumber", "PageSize"},
		nil, (*Cloud).describeInterfaces},
	"AssignPrivateIpAddresses":       {[]string{"NetworkInterfaceId", "VSwitchId"}, []string{"NetworkInterfaceId"}, (*Cloud).assignAddress},
	"UnassignPrivateIpAddresses":     {[]string{"NetworkInterfaceId", "PrivateIpAddress.N"}, []string{"NetworkInterfaceId", "PrivateIpAddress.1"}, (*Cloud).unassignAddresses},
	"DescribeVSwitches":              {[]string{"VSwitchId", "VSwitchIds.N", "NetworkId", "PageNumber", "PageSize"}, nil, (*Cloud).describeVSwitches},
	"DescribeSecurityGroupAttribute": {[]string{"SecurityGroupId"}, []string{"SecurityGroupId"}, (*Cloud).describeGroup},
}

// query is the parameters of a call.
type query map[string]string

// list returns X.1, X.2, ...
func (q query) list(name string) (out []string) {
	for i := 1; ; i++ {
		v, ok := q[name+"."+strconv.Itoa(i)]
		if !ok {
			return out
		}
		out = append(out, v)
	}
}

// check refuses parameters that the action does not have: the real cloud ignores them silently, and a client that
// sends one does not do what its author meant.
func (a action) check(q query) error {
	for name := range q {
		base := name
		if i := strings.LastIndexByte(name, '.'); i >= 0 {
			base = name[:i] + ".N"
		}
		if !slices.Contains(a.parameters, base) {
			return refuse("InvalidParameter."+name, "the action has no parameter %s", name)
		}
	}
	for _, name := range a.required {
		if q[name] == "" {
			return refuse("MissingParameter", "%s is missing", name)
		}
	}
	return nil
}

// page cuts one page out of a list.
func page[T any](q query, all []T) (out []T, number, size int, err error) {
	number, size = 1, 10
	for name, to := range map[string]*int{"PageNumber": &number, "PageSize": &size} {
		if text := q[name]; text != "" {
			if *to, err = strconv.Atoi(text); err != nil || *to < 1 {
				return nil, 0, 0, refuse("InvalidParameter."+name, "%q", text)
			}
		}
	}
	size = min(size, mostInPage)
	first := min((number-1)*size, len(all))
	return all[first:min(first+size, len(all))], number, size, nil
}

// ids reads a parameter that is the text of a JSON array.
func ids(name, text string) (out []string, err error) {
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		return nil, refuse("InvalidParameter."+name, "want a JSON array, got %q", text)
	}
	return out, nil
}

func byPlace(a, b Interface) int {
	if a.Primary != b.Primary {
		if a.Primary {
			return -1
		}
		return 1
	}
	return cmp.Compare(a.ID, b.ID)
}

func (c *Cloud) describeInstances(q query, from *state) (object, error) {
	var want []string
	var err error
	if text, ok := q["InstanceIds"]; ok {
		if want, err = ids("InstanceIds", text); err != nil {
			return nil, err
		}
	} else if id := q["InstanceId"]; id != "" {
		want = []string{id}
	}
	var all []Instance
	for _, i := range from.instances {
		if want == nil || slices.Contains(want, i.ID) {
			all = append(all, i)
		}
	}
	slices.SortFunc(all, func(a, b Instance) int { return cmp.Compare(a.ID, b.ID) })
	shown, number, size, err := page(q, all)
	if err != nil {
		return nil, err
	}
	out := []object{}
	for _, i := range shown {
		var primary Interface
		cards := []object{}
		for _, n := range interfacesOf(from, i.ID) {
			if n.Primary {
				primary = n
			}
			cards = append(cards, object{"NetworkInterfaceId": n.ID, "MacAddress": n.MAC, "Type": n.kind(), "PrimaryIpAddress": n.Address})
		}
		out = append(out, object{
			"InstanceId": i.ID, "Status": c.settleInstance(i, from), "EnsRegionId": region,
			"NetworkAttributes":  object{"NetworkId": "n-1", "VSwitchId": i.VSwitch, "PrivateIpAddress": object{"IpAddress": []any{primary.Address}}},
			"SecurityGroupIds":   object{"SecurityGroupId": []string{i.Group}},
			"PrivateIpAddresses": object{"PrivateIpAddress": []object{{"Ip": primary.Address, "GateWay": gateway(from.switches[i.VSwitch].cidr)}}},
			"NetworkInterfaces":  object{"NetworkInterfaces": cards},
		})
	}
	return object{"Instances": object{"Instance": out}, "TotalCount": len(all), "PageNumber": number, "PageSize": size}, nil
}

func interfacesOf(s *state, instance string) (out []Interface) {
	for _, n := range s.interfaces {
		if n.Instance == instance {
			out = append(out, n)
		}
	}
	slices.SortFunc(out, byPlace)
	return out
}

func (n Interface) kind() string {
	if n.Primary {
		return "Primary"
	}
	return "Secondary"
}

// sets are the interface's own address and its secondary addresses, as lists show them.
func (n Interface) sets() object {
	all := []object{{"PrivateIpAddress": n.Address, "Primary": true}}
	for _, a := range n.Addresses {
		all = append(all, object{"PrivateIpAddress": a, "Primary": false})
	}
	return object{"PrivateIpSet": all}
}

// settleInstance returns the status that a list shows, and ends a middle state that has been shown often enough.
func (c *Cloud) settleInstance(i Instance, from *state) string {
	live := c.now.instances[i.ID]
	end := map[string]string{Stopping: Stopped, Starting: Running}[live.Status]
	if from == &c.now && end != "" {
		if live.left--; live.left < 0 {
			c.remember()
			live.Status = end
		}
		c.now.instances[i.ID] = live
		if live.Status == end {
			c.changed(i.ID)
		}
		return live.Status
	}
	return i.Status
}

func (c *Cloud) settleInterface(n Interface, from *state) Interface {
	live := c.now.interfaces[n.ID]
	end := map[string]string{Attaching: InUse, Detaching: Available}[live.Status]
	if from == &c.now && end != "" {
		if live.left--; live.left < 0 {
			c.remember()
			live.Status = end
			if end == Available {
				live.Instance = ""
			}
		}
		c.now.interfaces[n.ID] = live
		return live
	}
	return n
}

func (c *Cloud) startInstance(q query, _ *state) (object, error) {
	i, err := c.instance(q["InstanceId"], Stopped)
	if err != nil {
		return nil, err
	}
	for _, n := range c.ofInstance(i.ID) {
		if n.Status != InUse {
			return nil, refuse("IncorrectInstanceStatus", "the interface %s of the instance is %s", n.ID, n.Status)
		}
	}
	i.Status, i.left = Starting, c.polls
	c.now.instances[i.ID] = i
	return object{"Code": 0}, nil
}

func (c *Cloud) stopInstance(q query, _ *state) (object, error) {
	i, err := c.instance(q["InstanceId"], Running)
	if err != nil {
		return nil, err
	}
	i.Status, i.left = Stopping, c.polls
	c.now.instances[i.ID] = i
	c.changed(i.ID)
	return object{"Code": 0}, nil
}

func (c *Cloud) instance(id, status string) (Instance, error) {
	i, ok := c.now.instances[id]
	switch {
	case !ok:
		return i, refuse("InstanceIdNotFound", "the instance %s does not exist", id)
	case i.Status != status:
		return i, refuse("IncorrectInstanceStatus", "the instance %s is %s", id, i.Status)
	}
	return i, nil
}

func (c *Cloud) createInterface(q query, _ *state) (object, error) {
	groups, err := ids("SecurityGroupIds", q["SecurityGroupIds"])
	if err != nil {
		return nil, err
	}
	if len(groups) != 1 {
		return nil, refuse("InvalidParameter.SecurityGroupIds", "want one group, got %d", len(groups))
	}
	if _, ok := c.groups[groups[0]]; !ok {
		return nil, refuse("InvalidSecurityGroupId.NotFound", "the group %s does not exist", groups[0])
	}
	n, err := c.makeInterface(q["VSwitchId"], groups[0], q["Name"])
	if err != nil {
		return nil, err
	}
	c.now.interfaces[n.ID] = n
	return object{"NetworkInterfaceIds": []string{n.ID}}, nil
}

func (c *Cloud) attach(q query, _ *state) (object, error) {
	n, ok := c.now.interfaces[q["NetworkInterfaceId"]]
	if !ok {
		return nil, refuse("InvalidEniId.NotFound", "the interface %s does not exist", q["NetworkInterfaceId"])
	}
	i, err := c.instance(q["InstanceId"], Stopped)
	switch {
	case err != nil:
		return nil, err
	case n.Status != Available:
		return nil, refuse("InvalidOperation.InvalidEniState", "the interface %s is %s", n.ID, n.Status)
	case len(c.ofInstance(i.ID)) >= MostInterfaces:
		return nil, refuse("EniPerInstanceLimitExceeded", "the instance has %d interfaces", MostInterfaces)
	}
	n.Instance, n.Status, n.left = i.ID, Attaching, c.polls
	c.now.interfaces[n.ID] = n
	return object{}, nil
}

func (c *Cloud) describeInterfaces(q query, from *state) (object, error) {
	want := q.list("NetworkInterfaceIds")
	var all []Interface
	for _, n := range from.interfaces {
		matches := func(name, value string) bool { return q[name] == "" || q[name] == value }
		if (len(want) == 0 || slices.Contains(want, n.ID)) && matches("InstanceId", n.Instance) && matches("NetworkInterfaceName", n.Name) &&
			matches("VSwitchId", n.VSwitch) && matches("Status", n.Status) && matches("Type", n.kind()) {
			all = append(all, n)
		}
	}
	slices.SortFunc(all, byPlace)
	shown, number, size, err := page(q, all)
	if err != nil {
		return nil, err
	}
	out := []object{}
	for _, n := range shown {
		n = c.settleInterface(n, from)
		status := n.Status
		if status == InUse {
			status = "In_use" // as the example of the documents has it; others have "InUse"
		}
		out = append(out, object{
			"NetworkInterfaceId": n.ID, "NetworkInterfaceName": n.Name, "MacAddress": n.MAC, "PrimaryIp": n.Address, "Status": status, "Type": n.kind(), "VSwitchId": n.VSwitch,
			"NetworkId": "n-1", "InstanceId": n.Instance, "SecurityGroupIds": object{"SecurityGroup": []string{n.Group}}, "PrivateIpSets": n.sets(),
		})
	}
	return object{"NetworkInterfaceSets": object{"NetworkInterfaceSet": out}, "TotalCount": len(all), "PageNumber": number, "PageSize": size}, nil
}

func (c *Cloud) assignAddress(q query, _ *state) (object, error) {
	id := q["NetworkInterfaceId"]
	a, err := c.assign(id)
	if err != nil {
		return nil, err
	}
	return object{"AssignedPrivateIpAddressesSet": object{"NetworkInterfaceId": id, "PrivateIpSet": object{"PrivateIpAddress": []any{a}}}}, nil
}

func (c *Cloud) unassignAddresses(q query, _ *state) (object, error) {
	n, ok := c.now.interfaces[q["NetworkInterfaceId"]]
	if !ok {
		return nil, refuse("InvalidEniId.NotFound", "the interface %s does not exist", q["NetworkInterfaceId"])
	}
	var addresses []netip.Addr
	for _, text := range q.list("PrivateIpAddress") {
		a, err := netip.ParseAddr(text)
		if err != nil || !slices.Contains(n.Addresses, a) {
			return nil, refuse("InvalidIp.IpUnassigned", "%s is no secondary address of %s", text, n.ID)
		}
		addresses = append(addresses, a)
	}
	c.unassign(n.ID, addresses)
	return object{}, nil
}

func (c *Cloud) describeVSwitches(q query, from *state) (object, error) {
	want := q.list("VSwitchIds")
	if id := q["VSwitchId"]; id != "" {
		want = append(want, id)
	}
	type shownSwitch struct {
		id string
		vSwitch
	}
	var all []shownSwitch
	for id, s := range from.switches {
		if len(want) == 0 || slices.Contains(want, id) {
			all = append(all, shownSwitch{id, s})
		}
	}
	slices.SortFunc(all, func(a, b shownSwitch) int { return cmp.Compare(a.id, b.id) })
	shown, number, size, err := page(q, all)
	if err != nil {
		return nil, err
	}
	out := []object{}
	for _, s := range shown {
		out = append(out, object{"VSwitchId": s.id, "CidrBlock": s.cidr.String(), "FreeIpCount": s.free, "Status": "Available", "EnsRegionId": region})
	}
	return object{"VSwitches": object{"VSwitch": out}, "TotalCount": len(all), "PageNumber": number, "PageSize": size}, nil
}

func (c *Cloud) describeGroup(q query, _ *state) (object, error) {
	rules, ok := c.groups[q["SecurityGroupId"]]
	if !ok {
		return nil, refuse("InvalidSecurityGroupId.NotFound", "the group %s does not exist", q["SecurityGroupId"])
	}
	return object{"SecurityGroupId": q["SecurityGroupId"], "Permissions": object{"Permission": rules}}, nil
}
