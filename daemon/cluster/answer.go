package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// maxObject bounds how much of one object is held while it is read. etcd accepts 1.5 MB.
const maxObject = 16 << 20

// errTooLarge ends an answer that would fill the memory.
var errTooLarge = fmt.Errorf("an object of more than %d MB", maxObject>>20)

// errCut says that an answer stopped in the middle of a list.
var errCut = errors.New("the answer ended in its middle")

// bounded is a reader that gives at most maxObject bytes between two calls of next.
type bounded struct {
	io.Reader
	left int
	err  error // the Reader's last error
}

func (b *bounded) next() { b.left = maxObject }

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errTooLarge
	}
	n, err := b.Reader.Read(p)
	b.left, b.err = b.left-n, err
	return n, err
}

// listMeta is the metadata of a list. Continue is set when the server gave only a part of the list without
// being asked to: the next part begins there.
type listMeta struct{ ResourceVersion, Continue string }

// readList reads a list item by item, so that memory never holds the raw 100 MB of 5,000 Nodes. A list counts
// only when all of it was read.
func readList(r io.Reader, k kind, each func(item)) (listMeta, error) {
	var meta listMeta
	var named string
	protobuf, r := startsWith(r, protobufMagic)
	body := &bounded{Reader: r, left: maxObject}
	if protobuf {
		return readProtobufList(body, k, each)
	}
	d := json.NewDecoder(body)
	var other json.RawMessage
	err := members(d, func(key string) error {
		switch key {
		case "metadata":
			return d.Decode(&meta)
		case "kind":
			return d.Decode(&named)
		case "items":
			return elements(d, func() error {
				it, err := readItem(k, d.Decode)
				body.next()
				if err == nil {
					each(it)
				}
				return err
			})
		}
		return d.Decode(&other)
	})
	return meta, listEnd(err, named, k)
}

// members calls do at each value of the JSON object that comes next.
func members(d *json.Decoder, do func(key string) error) error {
	open, err := d.Token()
	if err != nil {
		return err
	}
	if open != json.Delim('{') {
		return errNoObject
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return err
		}
		if err := do(key.(string)); err != nil { // Token returns a string for each key
			return err
		}
	}
	_, err = d.Token()
	return err
}

// elements calls do at each value of the JSON array that comes next. null is an empty array.
func elements(d *json.Decoder, do func() error) error {
	open, err := d.Token()
	if err != nil || open == nil {
		return err
	}
	if open != json.Delim('[') {
		return errNoObject
	}
	for d.More() {
		if err := do(); err != nil {
			return err
		}
	}
	_, err = d.Token()
	return err
}

const (
	eventDeleted  = "DELETED"
	eventBookmark = "BOOKMARK"
	eventError    = "ERROR"
)

// readEvents reads a watch until it ends. each decodes the event's object. A watch that ends without a reason
// is not an error: a watch lives some minutes, and a server that restarts cuts it short.
func readEvents(r io.Reader, each func(event string, object func(any) error) error) error {
	protobuf, r := startsWith(r, "\x00") // the length of a frame
	body := &bounded{Reader: r, left: maxObject}
	one := jsonEvents(body)
	if protobuf {
		one = protobufEvents(body)
	}
	for {
		switch err := one(each); {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), err != nil && body.err != nil && errors.Is(err, body.err):
			return nil
		case err != nil:
			return err
		}
		body.next()
	}
}

// jsonEvents returns a function that reads the next event of a watch as JSON.
func jsonEvents(body *bounded) func(each func(event string, object func(any) error) error) error {
	d := json.NewDecoder(body)
	return func(each func(event string, object func(any) error) error) error {
		var event string
		var object, other json.RawMessage
		err := members(d, func(key string) error {
			switch {
			case key == "type":
				return d.Decode(&event)
			case key != "object":
				return d.Decode(&other)
			case event == "": // a proxy may sort the keys; an API server writes the type first
				return d.Decode(&object)
			}
			return each(event, d.Decode)
		})
		if err == nil && object != nil {
			err = each(event, func(v any) error { return json.Unmarshal(object, v) })
		}
		return err
	}
}

// older reports whether version a comes before b. Versions are numbers that grow. Text that is not a number
// is never older.
func older(a, b string) bool {
	x, errX := strconv.ParseUint(a, 10, 64)
	y, errY := strconv.ParseUint(b, 10, 64)
	return errX == nil && errY == nil && x < y
}

// resource is a kind's name in paths.
func (k kind) resource() string { return strings.ToLower(k.kind) + "s" }

// Path is the path under which a kind is listed: "apis/network.openyurt.io/v1alpha1/bgppeers". The path of an
// object appends a slash and its name.
func Path(name string) string { return kind{APIVersion(name), name}.path() }

func (k kind) path() string {
	if k.kind == kindSecret {
		return "api/v1/namespaces/" + secretNamespace + "/secrets"
	}
	if strings.Contains(k.apiVersion, "/") {
		return "apis/" + k.apiVersion + "/" + k.resource()
	}
	return "api/" + k.apiVersion + "/" + k.resource()
}
