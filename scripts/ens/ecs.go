package ens

import (
	"cmp"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// The versions of the APIs: the one of ENS, and those of ECS and of its subnets.
const (
	versionENS = "2017-11-10"
	versionECS = "2014-05-26"
	versionVPC = "2016-04-28"
)

const (
	region = "cn-test-1"
	// mostInCall is how many addresses an Available interface can have, and so one call can assign to it.
	mostInCall = 10
)

// Type is an instance type of ECS, with the limits that DescribeInstanceTypes tells.
type Type struct {
	Interfaces int // of an instance, the primary interface included
	Addresses  int // of an interface, its own included
}

// NewECS returns a cloud that speaks the API of ECS instead. An interface is attached while the instance runs. The
// limits are those of the instance's type, and a call assigns several addresses or none. A call with the ClientToken of
// an earlier one gets the answer of the earlier one. Instances are made with [Cloud.AddTyped].
func NewECS(types map[string]Type) *Cloud {
	c := New()
	c.types, c.tokens = types, map[string]tokenUse{}
	return c
}

// tokenUse is a call with a ClientToken.
type tokenUse struct {
	call   string // action and parameters
	answer object
}

// AddTyped makes a running instance of a type, as [Cloud.AddInstance] does.
func (c *Cloud) AddTyped(id, kind, vswitch, group string) netip.Addr {
	a := c.AddInstance(id, vswitch, group)
	c.mu.Lock()
	defer c.mu.Unlock()
	i := c.now.instances[id]
	i.Type = kind
	c.now.instances[id] = i
	return a
}

// actionsECS are the calls of ECS, with the prefix of their permission.
var actionsECS = map[string]action{ // read only
	"DescribeInstances":              {[]string{"RegionId", "InstanceIds", "MaxResults", "NextToken"}, []string{"RegionId"}, (*Cloud).ecsInstances},
	"DescribeInstanceTypes":          {[]string{"InstanceTypes.N", "MaxResults", "NextToken"}, nil, (*Cloud).ecsTypes},
	"CreateNetworkInterface":         {[]string{"RegionId", "VSwitchId", "SecurityGroupIds.N", "NetworkInterfaceName", "ClientToken"}, []string{"RegionId", "VSwitchId", "SecurityGroupIds.1"}, (*Cloud).ecsCreate},
	"AttachNetworkInterface":         {[]string{"RegionId", "NetworkInterfaceId", "InstanceId"}, []string{"RegionId", "NetworkInterfaceId", "InstanceId"}, (*Cloud).ecsAttach},
	"DescribeNetworkInterfaces":      {[]string{"RegionId", "InstanceId", "NetworkInterfaceName", "VSwitchId", "Status", "Type", "MaxResults", "NextToken"}, []string{"RegionId"}, (*Cloud).ecsInterfaces},
	"AssignPrivateIpAddresses":       {[]string{"RegionId", "NetworkInterfaceId", "SecondaryPrivateIpAddressCount", "ClientToken"}, []string{"RegionId", "NetworkInterfaceId", "SecondaryPrivateIpAddressCount"}, (*Cloud).ecsAssign},
	"UnassignPrivateIpAddresses":     {[]string{"RegionId", "NetworkInterfaceId", "PrivateIpAddress.N"}, []string{"RegionId", "NetworkInterfaceId", "PrivateIpAddress.1"}, (*Cloud).unassignAddresses},
	"DescribeSecurityGroupAttribute": {[]string{"RegionId", "SecurityGroupId"}, []string{"RegionId", "SecurityGroupId"}, (*Cloud).ecsGroup},
}

var actionsVPC = map[string]action{ // read only
	"DescribeVSwitches": {[]string{"RegionId", "VSwitchId", "PageNumber", "PageSize"}, []string{"RegionId"}, (*Cloud).vpcSwitches},
}

// find returns an action of the cloud, and the name of the service that permissions begin with.
func (c *Cloud) find(name, version string) (a action, service string, ok bool) {
	of, service := map[string]action(nil), ""
	switch {
	case c.types == nil && version == versionENS:
		of, service = actions, "ens"
	case c.types != nil && version == versionECS:
		of, service = actionsECS, "ecs"
	case c.types != nil && version == versionVPC:
		of, service = actionsVPC, "vpc"
	}
	a, ok = of[name]
	return a, service, ok
}

// once carries a call out, or repeats the answer to an earlier call with its ClientToken.
func (c *Cloud) once(name string, q query, do func() (object, error)) (object, error) {
	if id := q["RegionId"]; id != "" && id != region {
		return nil, refusal{http.StatusNotFound, "InvalidRegionId.NotFound", "there is no region " + id}
	}
	token := q["ClientToken"]
	if token == "" {
		return do()
	}
	call := name
	for _, key := range slices.Sorted(maps.Keys(q)) {
		call += " " + key + "=" + q[key]
	}
	if was, ok := c.tokens[token]; ok {
		if was.call != call {
			return nil, refuse("IdempotentParameterMismatch", "the token was used for another call")
		}
		return maps.Clone(was.answer), nil
	}
	answer, err := do()
	if err == nil {
		c.tokens[token] = tokenUse{call, maps.Clone(answer)}
	}
	return answer, err
}

// after cuts one page out of a list, and returns the token of the next one.
func after[T any](q query, all []T) (out []T, next string, err error) {
	size, first := 10, 0
	if text := q["MaxResults"]; text != "" {
		if size, err = strconv.Atoi(text); err != nil || size < 10 || size > 500 {
			return nil, "", refuse("InvalidParameter.MaxResults", "%q", text)
		}
	}
	if text := q["NextToken"]; text != "" {
		if first, err = strconv.Atoi(strings.TrimPrefix(text, "from-")); err != nil || first > len(all) {
			return nil, "", refuse("InvalidParameter.NextToken", "%q", text)
		}
	}
	size = min(size, mostInPage)
	if first+size < len(all) {
		return all[first : first+size], fmt.Sprint("from-", first+size), nil
	}
	return all[first:], "", nil
}

func (c *Cloud) ecsInstances(q query, from *state) (object, error) {
	var want []string
	if text, ok := q["InstanceIds"]; ok {
		var err error
		if want, err = ids("InstanceIds", text); err != nil {
			return nil, err
		}
	}
	var all []Instance
	for _, i := range from.instances {
		if want == nil || slices.Contains(want, i.ID) {
			all = append(all, i)
		}
	}
	slices.SortFunc(all, func(a, b Instance) int { return cmp.Compare(a.ID, b.ID) })
	shown, next, err := after(q, all)
	if err != nil {
		return nil, err
	}
	out := []object{}
	for _, i := range shown {
		out = append(out, object{"InstanceId": i.ID, "Status": c.settleInstance(i, from), "InstanceType": i.Type, "RegionId": region, "ZoneId": region + "-a",
			"VpcAttributes": object{"VpcId": "vpc-1", "VSwitchId": i.VSwitch}, "SecurityGroupIds": object{"SecurityGroupId": []string{i.Group}}})
	}
	return object{"Instances": object{"Instance": out}, "NextToken": next}, nil
}

func (c *Cloud) ecsTypes(q query, _ *state) (object, error) {
	out := []object{}
	for _, name := range q.list("InstanceTypes") {
		if t, ok := c.types[name]; ok {
			out = append(out, object{"InstanceTypeId": name, "EniQuantity": t.Interfaces, "EniPrivateIpAddressQuantity": t.Addresses})
		}
	}
	return object{"InstanceTypes": object{"InstanceType": out}, "NextToken": ""}, nil
}

func (c *Cloud) ecsCreate(q query, _ *state) (object, error) {
	groups := q.list("SecurityGroupIds")
	for _, g := range groups {
		if _, ok := c.groups[g]; !ok {
			return nil, refusal{http.StatusNotFound, "InvalidSecurityGroupId.NotFound", "the group " + g + " does not exist"}
		}
	}
	n, err := c.makeInterface(q["VSwitchId"], groups[0], q["NetworkInterfaceName"])
	if err != nil {
		return nil, err
	}
	c.now.interfaces[n.ID] = n
	return object{"NetworkInterfaceId": n.ID, "Status": n.Status, "PrivateIpAddress": n.Address, "MacAddress": n.MAC}, nil
}

func (c *Cloud) ecsAttach(q query, _ *state) (object, error) {
	n, ok := c.now.interfaces[q["NetworkInterfaceId"]]
	i, there := c.now.instances[q["InstanceId"]]
	switch {
	case !ok:
		return nil, refusal{http.StatusNotFound, "InvalidEniId.NotFound", "the interface does not exist"}
	case !there:
		return nil, refusal{http.StatusNotFound, "InvalidInstanceId.NotFound", "the instance does not exist"}
	case i.Status != Running && i.Status != Stopped:
		return nil, refusal{http.StatusForbidden, "IncorrectInstanceStatus", "the instance is " + i.Status}
	case n.Status != Available:
		return nil, refusal{http.StatusForbidden, "InvalidOperation.InvalidEniState", "the interface is " + n.Status}
	}
	others := c.ofInstance(i.ID)
	if slices.ContainsFunc(others, func(o Interface) bool { return o.Status == Attaching || o.Status == Detaching }) {
		return nil, refusal{http.StatusConflict, "Operation.Conflict", "another interface of the instance is on its way"}
	}
	if len(others) >= c.types[i.Type].Interfaces {
		return nil, refusal{http.StatusForbidden, "EniPerInstanceLimitExceeded", fmt.Sprintf("a %s has %d interfaces", i.Type, len(others))}
	}
	n.Instance, n.Status, n.left = i.ID, Attaching, c.polls
	c.now.interfaces[n.ID] = n
	return object{}, nil
}

func (c *Cloud) ecsInterfaces(q query, from *state) (object, error) {
	var all []Interface
	for _, n := range from.interfaces {
		matches := func(name, value string) bool { return q[name] == "" || q[name] == value }
		if matches("InstanceId", n.Instance) && matches("NetworkInterfaceName", n.Name) && matches("VSwitchId", n.VSwitch) && matches("Status", n.Status) && matches("Type", n.kind()) {
			all = append(all, n)
		}
	}
	slices.SortFunc(all, byPlace)
	shown, next, err := after(q, all)
	if err != nil {
		return nil, err
	}
	out := []object{}
	for _, n := range shown {
		n = c.settleInterface(n, from)
		out = append(out, object{
			"NetworkInterfaceId": n.ID, "NetworkInterfaceName": n.Name, "MacAddress": n.MAC, "PrivateIpAddress": n.Address, "Status": n.Status, "Type": n.kind(), "VSwitchId": n.VSwitch,
			"InstanceId": n.Instance, "SecurityGroupIds": object{"SecurityGroupId": []string{n.Group}}, "PrivateIpSets": n.sets(),
		})
	}
	return object{"NetworkInterfaceSets": object{"NetworkInterfaceSet": out}, "NextToken": next}, nil
}

// ecsAssign assigns all addresses or none.
func (c *Cloud) ecsAssign(q query, _ *state) (object, error) {
	n, ok := c.now.interfaces[q["NetworkInterfaceId"]]
	count, err := strconv.Atoi(q["SecondaryPrivateIpAddressCount"])
	switch {
	case !ok:
		return nil, refusal{http.StatusNotFound, "InvalidEniId.NotFound", "the interface does not exist"}
	case err != nil || count < 1:
		return nil, refuse("InvalidParameter.SecondaryPrivateIpAddressCount", "%q", q["SecondaryPrivateIpAddressCount"])
	case n.Primary:
		return nil, refuse("InvalidOperation.EniType", "the test's account may not use the primary interface %s", n.ID)
	case n.Status != InUse && n.Status != Available:
		return nil, refusal{http.StatusForbidden, "InvalidOperation.InvalidEniState", "the interface is " + n.Status}
	}
	most := mostInCall
	if n.Status == InUse {
		most = c.types[c.now.instances[n.Instance].Type].Addresses - 1
	}
	if len(n.Addresses)+count > most {
		return nil, refusal{http.StatusForbidden, "InvalidOperation.Ipv4CountExceeded", fmt.Sprintf("the interface has %d of %d addresses", len(n.Addresses), most)}
	}
	if c.now.switches[n.VSwitch].free < count {
		return nil, refusal{http.StatusForbidden, "InvalidVSwitchId.IpNotEnough", "the vSwitch " + n.VSwitch + " has too few free addresses"}
	}
	var got []netip.Addr
	for range count {
		a, err := c.address(n.VSwitch)
		if err != nil {
			return nil, err
		}
		n.Addresses = append(slices.Clone(n.Addresses), a)
		c.now.interfaces[n.ID] = n
		got = append(got, a)
	}
	c.changed(n.Instance)
	return object{"AssignedPrivateIpAddressesSet": object{"NetworkInterfaceId": n.ID, "PrivateIpSet": object{"PrivateIpAddress": got}}}, nil
}

func (c *Cloud) ecsGroup(q query, from *state) (object, error) {
	out, err := c.describeGroup(q, from)
	if err == nil {
		out["InnerAccessPolicy"] = "Drop"
		if c.inner[q["SecurityGroupId"]] {
			out["InnerAccessPolicy"] = "Accept"
		}
	}
	return out, err
}

// LetInside makes the members of a security group of ECS reach each other without a rule.
func (c *Cloud) LetInside(group string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inner[group] = true
}

func (c *Cloud) vpcSwitches(q query, from *state) (object, error) {
	var all []object
	for _, id := range slices.Sorted(maps.Keys(from.switches)) {
		if s := from.switches[id]; q["VSwitchId"] == "" || q["VSwitchId"] == id {
			all = append(all, object{"VSwitchId": id, "CidrBlock": s.cidr.String(), "AvailableIpAddressCount": s.free, "Status": "Available", "ZoneId": region + "-a"})
		}
	}
	shown, number, size, err := page(q, all)
	return object{"VSwitches": object{"VSwitch": shown}, "TotalCount": len(all), "PageNumber": number, "PageSize": size}, err
}
