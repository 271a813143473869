package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
)

// forwarded is the first byte of a call that plugin/forward passes on unread. JSON never begins with this
// byte.
const forwarded = 0x01

var errCutShort = errors.New("forwarded call ends in its middle")

// decode reads a message in either form.
func decode(body []byte) (req Request, err error) {
	if len(body) == 0 || body[0] != forwarded {
		err = json.Unmarshal(body, &req)
		return req, err
	}
	cni := &CNI{}
	variables := map[string]*string{
		"CNI_COMMAND": &cni.Command, "CNI_CONTAINERID": &cni.ContainerID, "CNI_NETNS": &cni.Netns,
		"CNI_IFNAME": &cni.IfName, "CNI_ARGS": &cni.Args, "CNI_PATH": &cni.Path,
	}
	rest := body[1:]
	for {
		variable, after, ok := bytes.Cut(rest, []byte{0})
		if !ok {
			return req, errCutShort
		}
		if rest = after; len(variable) == 0 {
			break
		}
		name, value, _ := strings.Cut(string(variable), "=")
		if field := variables[name]; field != nil {
			*field = value
			delete(variables, name) // the first variable counts, as in package os
		}
	}
	// The path comes after standard input, which may hold any byte.
	end := bytes.LastIndexByte(rest, 0)
	if end < 0 || end+1 == len(rest) {
		return req, errCutShort
	}
	cni.Stdin, cni.Socket = rest[:end:end], string(rest[end+1:])
	return Request{Op: "cni", CNI: cni}, nil
}

// encode writes the reply in the form that the caller reads. A forwarder takes JSON for a refusal.
func encode(req Request, r Reply) ([]byte, error) {
	if req.CNI == nil || req.CNI.Socket == "" || r.Error != "" {
		return json.Marshal(r)
	}
	status := byte(0)
	if r.Failed {
		status = 1
	}
	return append([]byte{status}, r.Output...), nil
}
