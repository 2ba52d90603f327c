# Sentences of the console. A key has the same values in each language.

## Frame

nav-overview = 概览
nav-devices = 设备
nav-enrollments = 注册组
nav-import = 导入
nav-pages = 页面
nav-skip = 跳到内容
role-operator = 操作员
role-viewer = 查看者
footer-server = 截至 {$now} · {$host} 上的 certdist {$version}，启动于 {$started} · {$database}
live-stale = 服务器没有应答，下面的数字已经过时。
live-ended = 会话已结束，下面的数字已经过时。
go-to-overview = 前往概览
page-not-found-title = 没有这个页面
page-not-found = 这个地址没有页面。{$link}
form-expired = 表单已过期
form-expired-text = 该表单不属于当前会话，因此没有做任何更改。请重新打开页面再操作一次。
signed-out = 您已退出登录
signed-out-text = 表单到达之前会话已经结束，因此没有做任何更改。请登录后再操作一次。
operators-only = 只有操作员可以这样做
operators-only-text = 您以查看者身份登录，可以查看一切，但不能更改。更改需要在配置中设置 {$role}。
database-failed = 数据库出错
database-failed-text = 没有做任何更改。数据库报告：
database-failed-advice = 如果问题持续存在，请检查磁盘是否已满，以及是否有其他进程占用该文件。
console-off = 还没有可以登录的用户
console-off-text = 尚未配置用户，因此控制台处于关闭状态。健康状态和指标位于 {$health} 和 {$metrics}。
console-off-hash = 要启用它，请生成密码的哈希值：
console-off-config = 将其写入 {$file}，然后重新加载 certdist（{$command} 或 SIGHUP）。

## Signing in

sign-in = 登录
sign-out = 退出
sign-in-name = 用户名
sign-in-password = 密码
sign-in-hint = 用户在 certdist.toml 中配置。忘记密码？用 {$command} 生成新的哈希值。
not-signed-in = 登录失败
sign-in-form-expired = 表单已过期，或者浏览器禁用了 Cookie。请重试。
sign-in-wrong = 用户名或密码错误。
sign-in-too-often = 尝试次数过多。请在 {$seconds} 秒后重试，或使用以前登录过的浏览器。
