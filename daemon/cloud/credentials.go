package cloud

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
)

// Credentials are an access key. Their text shows nothing of them.
type Credentials struct {
	Key, Secret string
	Token       string // of the Security Token Service; "": a key that lasts
}

// String implements fmt.Stringer.
func (Credentials) String() string { return "credentials" }

// GoString implements fmt.GoStringer.
func (c Credentials) GoString() string { return c.String() }

// LogValue implements slog.LogValuer.
func (c Credentials) LogValue() slog.Value { return slog.StringValue(c.String()) }

// ErrReadable says that others can read the file of credentials.
var ErrReadable = errors.New("others can read it")

// ReadCredentials reads a JSON file with the keys AccessKey, SecretKey and, for a temporary key, SecurityToken. For a
// file that others can read, or that the group can write, it returns the credentials and ErrReadable. The group may read
// it: Kubernetes mounts a Secret for a program without root in no other way.
func ReadCredentials(path string) (Credentials, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return Credentials{}, fmt.Errorf("credentials: %w", err)
	}
	var f struct{ AccessKey, SecretKey, SecurityToken string }
	if err := json.Unmarshal(text, &f); err != nil || f.AccessKey == "" || f.SecretKey == "" {
		return Credentials{}, fmt.Errorf(`credentials %s: want {"AccessKey": "...", "SecretKey": "..."}`, path) // err could show a part of it
	}
	c := Credentials{f.AccessKey, f.SecretKey, f.SecurityToken}
	info, err := os.Stat(path)
	if err != nil {
		return Credentials{}, fmt.Errorf("credentials: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o037 != 0 {
		return c, fmt.Errorf("credentials %s: mode %#o: %w; chmod 600 %s", path, mode, ErrReadable, path)
	}
	return c, nil
}

// The variables of the vendor's own tools.
const (
	keyVariable    = "ALIBABA_CLOUD_ACCESS_KEY_ID"
	secretVariable = "ALIBABA_CLOUD_ACCESS_KEY_SECRET"
	tokenVariable  = "ALIBABA_CLOUD_SECURITY_TOKEN"
)

// ErrNoCredentials says that the environment holds no credentials.
var ErrNoCredentials = errors.New("credentials: " + keyVariable + " or " + secretVariable + " is not set")

// EnvCredentials reads the environment variables of the vendor's own tools.
func EnvCredentials() (Credentials, error) {
	c := Credentials{os.Getenv(keyVariable), os.Getenv(secretVariable), os.Getenv(tokenVariable)}
	if c.Key == "" || c.Secret == "" {
		return Credentials{}, ErrNoCredentials
	}
	return c, nil
}
